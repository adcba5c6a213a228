# SPDX-License-Identifier: MIT
# `make help` lists the targets.

PREFIX ?= /usr/local
BUILD ?= build
CC ?= gcc
OPT ?= -O2 -g
SANITIZE ?=

WARN := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wmissing-prototypes -Werror
CFLAGS_ALL := -std=gnu11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 $(OPT) $(WARN) $(SANITIZE) \
              -Iengine -Ichecker -Ifaultinj $(CFLAGS)
LDFLAGS_ALL := $(SANITIZE) $(LDFLAGS)

# The rooms.  What a room may use is what its library is linked with; `make lint` checks includes.
IO_SRC      := $(wildcard engine/io*.c) engine/qcow2.c engine/codec.c
ENGINE_SRC  := $(filter-out $(IO_SRC) engine/qsnap.c,$(wildcard engine/*.c))
CHECKER_SRC := $(filter-out checker/qcheck.c,$(wildcard checker/*.c))
FAULT_SRC   := $(filter-out faultinj/qcrash.c,$(wildcard faultinj/*.c))
TEST_SRC    := $(wildcard tests/*.c)
SUITES      := $(patsubst tests/test_%.c,%,$(wildcard tests/test_*.c))

obj = $(patsubst %.c,$(BUILD)/%.o,$(1))
IO_LIB      := $(BUILD)/libio.a
ENGINE_LIB  := $(BUILD)/libengine.a
CHECKER_LIB := $(BUILD)/libchecker.a
FAULT_LIB   := $(BUILD)/libfault.a

LIBS_CODEC  := -lzstd -lz
LIBS_JSON   := -ljansson
LIBS_TEST   := $(shell pkg-config --libs check 2>/dev/null || echo -lcheck)
LIBS_THREAD := -lpthread
UNWIND      := $(shell pkg-config --exists libunwind 2>/dev/null && echo yes)
ifeq ($(UNWIND),yes)
LIBS_UNWIND := $(shell pkg-config --libs libunwind)
CFLAGS_ALL  += -DHAVE_LIBUNWIND
endif

PROGRAMS := $(foreach p,checker/qcheck engine/qsnap faultinj/qcrash,\
              $(if $(wildcard $(p).c),$(BUILD)/$(notdir $(p))))

all: $(PROGRAMS)                ## build the programs into build/

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -MMD -MP -c $< -o $@

$(IO_LIB): $(call obj,$(IO_SRC))
$(ENGINE_LIB): $(call obj,$(ENGINE_SRC))
$(CHECKER_LIB): $(call obj,$(CHECKER_SRC))
$(FAULT_LIB): $(call obj,$(FAULT_SRC))
$(BUILD)/lib%.a:
	@mkdir -p $(@D)
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/qcheck: $(BUILD)/checker/qcheck.o $(CHECKER_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_THREAD)
$(BUILD)/qsnap: $(BUILD)/engine/qsnap.o $(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_THREAD)
$(BUILD)/qcrash: $(BUILD)/faultinj/qcrash.o $(FAULT_LIB) $(CHECKER_LIB) $(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_UNWIND) $(LIBS_THREAD)

# One test program; its list of suites is the list of files tests/test_<suite>.c.
$(BUILD)/tests/suites.h: $(patsubst %,tests/test_%.c,$(SUITES))
	@mkdir -p $(@D)
	printf 'SUITE(%s)\n' $(SUITES) > $@
$(BUILD)/tests/main.o: $(BUILD)/tests/suites.h
$(BUILD)/tests/%.o: CFLAGS_ALL += -Itests -I$(BUILD)/tests
$(BUILD)/tests/run: $(call obj,$(filter-out tests/oracle.c tests/interplay.c,$(TEST_SRC))) \
		$(FAULT_LIB) $(CHECKER_LIB) $(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_TEST) $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_UNWIND) \
		$(LIBS_THREAD)

check: $(PROGRAMS) $(BUILD)/tests/run   ## run all tests
	$(BUILD)/tests/run

ORACLE_OBJ := $(call obj,$(addprefix tests/,oracle.c oracle_run.c compare.c differences.c \
	neutral.c imgmake.c damage.c survey.c proc.c))
$(BUILD)/tests/oracle: $(ORACLE_OBJ) $(CHECKER_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_THREAD)

N ?= 2000
SEED ?= 1
oracle: $(PROGRAMS) $(BUILD)/tests/oracle   ## compare with qemu-img check: make oracle N=2000 SEED=1
	$(BUILD)/tests/oracle $(N) $(SEED)

clean:                          ## remove what was built
	rm -rf $(BUILD)

help:                           ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1\t/p' Makefile | expand -t 14

.PHONY: all check oracle clean help
-include $(wildcard $(BUILD)/*/*.d)
