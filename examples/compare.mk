# Methods side by side: each at each sparsity, from one trained network, all with the same number of further epochs, and
# a report on all of them. One-shot methods are followed by fine-tuning; the others prune while they train on.
# An interrupted comparison goes on with the next `make`, as do interrupted trainings (--resume). What is made already is
# not made again, with other settings either: give these another OUT.
#
# A sparsity is of what the method takes: filters, l1's of linear layers too unless OPTIONS_l1="--skip 'fc*'", or weights
# (swd). slimming and swd-structured need batch norms, ARCH=resnet20; greg1 and greg2 as many EPOCHS as their penalty
# takes, shortened by OPTIONS_greg1; sss takes no sparsity and has no place here.
#
#   make -j2 -f examples/compare.mk
#   make -j2 -f examples/compare.mk OUT=mnist DATA=mnist:DIR METHODS='l1 fpgm swd' SPARSITIES='0.5 0.9' EPOCHS=20
#   make -j2 -f examples/compare.mk METHODS='magnitude swd' OPTIONS_swd='--method-arg a_max=1e3'

PRUNECLI ?= prunecli
OUT ?= comparison
METHODS ?= l1 sfp rpgp swd
SPARSITIES ?= 0.3 0.5 0.7
ARCH ?= lenet5
DATA ?= digits
EPOCHS ?= 10
LR ?= 0.02
THREADS ?= 1

ONE_SHOT = l1 l2 fpgm bn-scale random magnitude random-weights
RUN = $(PRUNECLI)
TRAIN = --threads $(THREADS) --quiet
EQUAL = --epochs $(EPOCHS) --lr $(LR) --schedule cosine --resume

# what one command writes: weights and sidecar
pair = $(OUT)/$(1).safetensors $(OUT)/$(1).json

.DELETE_ON_ERROR:
.PHONY: all
all: $(OUT)/report.html

$(OUT):
	mkdir -p $@

$(call pair,base) &: | $(OUT)
	$(RUN) train --arch $(ARCH) --data $(DATA) --epochs $(EPOCHS) --resume $(TRAIN) -o $(OUT)/base.safetensors

define one_shot
$(call pair,$(1)-$(2)-cut) &: $(call pair,base)
	$$(RUN) prune $$< --method $(1) --sparsity $(2) $$(OPTIONS_$(1)) $$(TRAIN) -o $(OUT)/$(1)-$(2)-cut.safetensors

$(call pair,$(1)-$(2)) &: $(call pair,$(1)-$(2)-cut)
	$$(RUN) finetune $$< $$(EQUAL) $$(TRAIN) -o $(OUT)/$(1)-$(2).safetensors
endef

define while_training
$(call pair,$(1)-$(2)) &: $(call pair,base)
	$$(RUN) prune $$< --method $(1) --sparsity $(2) $$(OPTIONS_$(1)) $$(EQUAL) $$(TRAIN) -o $(OUT)/$(1)-$(2).safetensors
endef

kind = $(if $(filter $(1),$(ONE_SHOT)),one_shot,while_training)
$(foreach m,$(METHODS),$(foreach s,$(SPARSITIES),$(eval $(call $(call kind,$(m)),$(m),$(s)))))

RESULTS = $(OUT)/base.safetensors $(foreach m,$(METHODS),$(SPARSITIES:%=$(OUT)/$(m)-%.safetensors))

$(OUT)/report.html: $(RESULTS) $(RESULTS:.safetensors=.json)
	COLUMNS=120 $(RUN) report $(RESULTS) --html $@ > $(OUT)/report.txt
