# SPDX-License-Identifier: MIT
# `make help` lists the targets.

# What is installed decides how things are built: what is asked for beside `deps` is left to a
# second make, which looks after `deps` is done.
REST := $(filter-out deps,$(MAKECMDGOALS))
ifneq ($(and $(filter deps,$(MAKECMDGOALS)),$(REST)),)
$(firstword $(REST)): deps
	@$(MAKE) --no-print-directory $(REST)
$(wordlist 2,$(words $(REST)),$(REST)): $(firstword $(REST))
	@:
deps:
	@tests/deps.sh
.PHONY: deps $(REST)
else

PREFIX ?= /usr/local
BUILD ?= build
ifeq ($(origin CC),default)
CC := gcc
endif
OPT ?= -O2 -g
SANITIZE ?=

WARN := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wmissing-prototypes -Werror
# With -iquote "check.h" is the checker's and <check.h> that of the test library.
CFLAGS_ALL := -std=gnu11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 $(OPT) $(WARN) $(SANITIZE) \
              -iquote engine -iquote checker -iquote faultinj $(CFLAGS)
LDFLAGS_ALL := $(SANITIZE) $(LDFLAGS)

# The rooms.  What a room may use is what its library is linked with; `make lint` checks includes.
IO_SRC      := $(wildcard engine/io*.c) engine/qcow2.c engine/codec.c engine/crew.c engine/text.c \
               engine/jvalue.c
ENGINE_SRC  := $(filter-out $(IO_SRC) engine/qsnap.c,$(wildcard engine/*.c))
CHECKER_SRC := $(filter-out checker/qcheck.c,$(wildcard checker/*.c))
FAULT_SRC   := $(filter-out faultinj/qcrash.c,$(wildcard faultinj/*.c))
# tests/: suites, programs with a main() of their own, and what they all use.
SUITES      := $(patsubst tests/test_%.c,%,$(wildcard tests/test_*.c))
TEST_MAINS  := $(wildcard tests/main.c tests/mkimage.c tests/oracle.c tests/trial.c \
                 tests/interplay.c tests/bench_crash.c tests/bench_snap.c \
                 tests/bench_check.c tests/bench_slow.c tests/fuzz_entry.c tests/fuzz_afl.c tests/fuzz_tool.c \
                 tests/fail_calls.c)
TEST_SRC    := $(filter-out $(TEST_MAINS) $(SUITES:%=tests/test_%.c),$(wildcard tests/*.c))

obj = $(patsubst %.c,$(BUILD)/%.o,$(1))
IO_LIB      := $(BUILD)/libio.a
ENGINE_LIB  := $(BUILD)/libengine.a
CHECKER_LIB := $(BUILD)/libchecker.a
FAULT_LIB   := $(BUILD)/libfault.a
TEST_LIB    := $(BUILD)/libtests.a

LIBS_CODEC  := -lzstd -lz
LIBS_JSON   := -ljansson
LIBS_TEST   := $(shell pkg-config --libs check 2>/dev/null || echo -lcheck)
LIBS_THREAD := -lpthread
# qcrash makes allocations fail.
WRAP_ALLOC  := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc
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
$(TEST_LIB): $(call obj,$(TEST_SRC))
$(BUILD)/lib%.a:
	@mkdir -p $(@D)
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/qcheck: $(BUILD)/checker/qcheck.o $(CHECKER_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_THREAD)
$(BUILD)/qsnap: $(BUILD)/engine/qsnap.o $(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_THREAD)
$(BUILD)/qcrash: $(BUILD)/faultinj/qcrash.o $(FAULT_LIB) $(CHECKER_LIB) $(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) $(WRAP_ALLOC) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_UNWIND) \
		$(LIBS_THREAD) -lm

# One test program; its list of suites is the list of files tests/test_<suite>.c.
$(BUILD)/tests/suites.h: FORCE
	@mkdir -p $(@D)
	@printf 'SUITE(%s)\n' $(SUITES) | cmp -s - $@ || printf 'SUITE(%s)\n' $(SUITES) > $@
FORCE:
$(BUILD)/tests/main.o: $(BUILD)/tests/suites.h
CFLAGS_TEST := -iquote tests -iquote $(BUILD)/tests -DQCHECK_PROGRAM='"$(BUILD)/qcheck"'
$(BUILD)/tests/%.o: CFLAGS_ALL += $(CFLAGS_TEST)
$(BUILD)/tests/run: $(call obj,tests/main.c $(SUITES:%=tests/test_%.c)) \
		$(TEST_LIB) $(FAULT_LIB) $(CHECKER_LIB) $(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) $(WRAP_ALLOC) -o $@ $^ $(LIBS_TEST) $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_UNWIND) \
		$(LIBS_THREAD) -lm
$(BUILD)/tests/oracle: $(BUILD)/tests/oracle.o $(TEST_LIB) $(CHECKER_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_THREAD)
$(BUILD)/tests/trial: $(BUILD)/tests/trial.o $(TEST_LIB) $(CHECKER_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_THREAD)
$(BUILD)/tests/mkimage: $(BUILD)/tests/mkimage.o $(TEST_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_CODEC) $(LIBS_THREAD)

$(BUILD)/tests/fuzz_tool: $(BUILD)/tests/fuzz_tool.o $(TEST_LIB) $(FAULT_LIB) $(CHECKER_LIB) \
		$(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) $(WRAP_ALLOC) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_UNWIND) \
		$(LIBS_THREAD) -lm

# Preloaded by a suite: no sanitizer, and nothing of ours in it.
$(BUILD)/tests/fail_calls.so: tests/fail_calls.c
	@mkdir -p $(@D)
	$(CC) $(filter-out $(SANITIZE) $(COUNTED),$(CFLAGS_ALL)) -fPIC -shared -o $@ $< -ldl

# The engine and QEMU in turns on one image.
$(BUILD)/tests/interplay: $(BUILD)/tests/interplay.o $(TEST_LIB) $(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_CODEC) $(LIBS_THREAD)

interplay: $(PROGRAMS) $(BUILD)/tests/interplay   ## engine and QEMU in turns: N steps from SEED
	$(BUILD)/tests/interplay $(or $(STEPS),$(N)) $(SEED)

$(BUILD)/tests/bench_snap: $(BUILD)/tests/bench_snap.o $(TEST_LIB) $(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_CODEC) $(LIBS_THREAD)

bench-snap: $(PROGRAMS) $(BUILD)/tests/bench_snap   ## qsnap beside qemu-img snapshot: SIZE=1T
	QSNAP=$(BUILD)/qsnap $(BUILD)/tests/bench_snap $(SIZE)

$(BUILD)/tests/bench_check: $(BUILD)/tests/bench_check.o $(TEST_LIB) $(CHECKER_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_THREAD)

# Where libfuse3 is: storage that is slow, as a file.
SLOW := $(shell pkg-config --exists 'fuse3 >= 3.12' 2>/dev/null && echo $(BUILD)/tests/bench_slow)
$(BUILD)/tests/bench_slow: $(BUILD)/tests/bench_slow.o
	$(CC) $(LDFLAGS_ALL) -o $@ $^ $(shell pkg-config --libs fuse3)

bench-check: $(PROGRAMS) $(BUILD)/tests/bench_check $(SLOW)   ## qcheck beside qemu-img check: ROW=name
	QCHECK=$(BUILD)/qcheck $(BUILD)/tests/bench_check $(ROW)

CHECK_NEEDS := $(PROGRAMS) $(BUILD)/tests/run $(BUILD)/tests/mkimage $(BUILD)/tests/fail_calls.so \
	$(BUILD)/tests/interplay
# Two halves at a time, about as long as one another under the sanitizers.
HALF := fuzz repair_faults trial oracle qsnap cli calls limits interplay engine_corpus nested bombs \
	bombs_repair
TO_RUN ?= $(SUITES)
check: $(CHECK_NEEDS)           ## run all tests, on two processors
	@$(BUILD)/tests/run $(filter $(HALF),$(TO_RUN)) >$(BUILD)/half.log 2>&1 & half=$$!; \
	$(BUILD)/tests/run $(filter-out $(HALF),$(TO_RUN)); other=$$?; \
	wait $$half; half=$$?; cat $(BUILD)/half.log; exit $$((half | other))

# The full exploration: every workload on every kind of image, sequences, random workloads, repairs,
# failing calls; then what each flush is good for.  The table is the one in README.
CRASH_IMAGES ?= c512 lazy blockgrow shared
crash: $(BUILD)/qcrash          ## explore crashes of every workload on every image, in full
	$(BUILD)/qcrash run --image all --cap 65536 --output table
	$(BUILD)/qcrash run --sequences 3 --output table
	$(BUILD)/qcrash run --random 200,12 --output table
	$(BUILD)/qcrash flushes --image all --cap 4096 | sed -n '/^operation/,$$p'
	$(BUILD)/qcrash run $(CRASH_IMAGES:%=--image %) --faults --output table
	$(BUILD)/qcrash run repair --image hurt --deep

limits: $(CHECK_NEEDS)          ## the largest images, the meanest repairs: seconds and memory of each
	@echo '| image | time | memory | allowed |'; echo '|---|---|---|---|'
	@LIMITS=print $(BUILD)/tests/run limits bombs_repair | grep '^|'

fields: $(BUILD)/tests/run      ## every field at every edge, with check, repair and engine
	FIELDS=all $(BUILD)/tests/run fields

flips: $(BUILD)/tests/run       ## each bit of the metadata of six images wrong, then a safe repair
	FLIPS=all $(BUILD)/tests/run flips

agreement: $(BUILD)/tests/run   ## oracle and checker on a million crash states
	AGREEMENT=$(or $(STATES),1000000) $(BUILD)/tests/run agreement

$(BUILD)/tests/bench_crash: $(BUILD)/tests/bench_crash.o $(TEST_LIB) $(FAULT_LIB) $(CHECKER_LIB) \
		$(ENGINE_LIB) $(IO_LIB)
	$(CC) $(LDFLAGS_ALL) $(WRAP_ALLOC) -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) $(LIBS_UNWIND) \
		$(LIBS_THREAD) -lm
bench-crash: $(BUILD)/tests/bench_crash   ## crash states a second, against files and qemu-img
	$(BUILD)/tests/bench_crash

mutants: $(BUILD)/qcrash        ## wrong engines that qcrash must find
	$(BUILD)/qcrash mutants
	$(BUILD)/qcrash flushes repair --image hurt

# Fuzzing: a program a target for libFuzzer (and clang), one for AFL++, the mutations as its library.
FUZZ_TARGETS := check repair engine dmlog
FUZZ_LIBS    := $(TEST_LIB) $(FAULT_LIB) $(CHECKER_LIB) $(ENGINE_LIB) $(IO_LIB)
$(BUILD)/tests/fuzz_entry_%.o: tests/fuzz_entry.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -DFUZZ_TARGET=fuzz_$* $(if $(filter dmlog,$*),,-DFUZZ_PACKED) -c $< -o $@
$(BUILD)/fuzz_%: $(BUILD)/tests/fuzz_entry_%.o $(FUZZ_LIBS)
	$(CC) $(LDFLAGS_ALL) $(WRAP_ALLOC) -fsanitize=fuzzer -o $@ $^ $(LIBS_JSON) $(LIBS_CODEC) \
		$(LIBS_UNWIND) $(LIBS_THREAD) -lm
$(BUILD)/fuzz_mutations.so: tests/fuzz_afl.c tests/fuzz_mutate.c tests/fuzz_pack.c tests/fuzz_io.c tests/damage.c \
		tests/survey.c engine/io.c engine/io_mem.c engine/qcow2.c
	@mkdir -p $(@D)
	$(CC) $(CFLAGS_ALL) -iquote tests -fPIC -shared -o $@ $^

# Without comparisons traced it is two to four times as fast; the mutator knows the magic numbers.
# AFL++'s pass cannot compile functions that are chosen when the program starts.
FUZZ_SANITIZE := -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all \
                 -fno-sanitize-coverage=trace-cmp
TIME ?= 60
fuzz: $(BUILD)/tests/fuzz_tool  ## fuzz every target for TIME seconds each: TIME=60, AFL=1 by AFL++
	$(if $(AFL),AFL_QUIET=1 $(MAKE) BUILD=$(BUILD)/afl CC=afl-clang-fast \
			OPT='-O2 -g -DVECTOR_LOOPS=' $(FUZZ_TARGETS:%=$(BUILD)/afl/fuzz_%) && \
		$(MAKE) BUILD=$(BUILD)/afl CC=clang $(BUILD)/afl/fuzz_mutations.so,\
		$(MAKE) BUILD=$(BUILD)/fuzz CC=clang OPT='-O1 -g -fno-omit-frame-pointer' \
			SANITIZE='$(FUZZ_SANITIZE)' $(FUZZ_TARGETS:%=$(BUILD)/fuzz/fuzz_%))
	BUILD=$(BUILD) AFL=$(AFL) tests/fuzz.sh $(TIME) $(or $(TARGET),$(FUZZ_TARGETS))

# gcov comes with the compiler; COVERAGE_SUITES= for some of the tests only.  Those left out take
# half of the time, and reach no line that the others do not; the halves are other ones, too.
# Threads count together.
COUNTED := -O0 -g --coverage -fprofile-update=atomic
COVERED_HALF := bombs bombs_repair calls cli engine_corpus fuzz
NOT_COVERED_BY := agreement cost explore fastpath fault interplay names qcrash recipe record sweep
coverage:                       ## lines and branches of engine/ and checker/ that the tests reach
	find $(BUILD)/coverage -name '*.gcda' -delete 2>/dev/null || true
	$(MAKE) BUILD=$(BUILD)/coverage OPT='$(COUNTED)' LDFLAGS=--coverage \
		CFLAGS='-Wno-format-truncation -DVECTOR_LOOPS= $(CFLAGS)' \
		coverage-build
	-$(if $(COVERAGE_SUITES),$(BUILD)/coverage/tests/run $(COVERAGE_SUITES),\
		$(MAKE) -s BUILD=$(BUILD)/coverage OPT='$(COUNTED)' LDFLAGS=--coverage \
		CFLAGS='-Wno-format-truncation -DVECTOR_LOOPS= $(CFLAGS)' \
		HALF='$(COVERED_HALF)' TO_RUN='$(filter-out $(NOT_COVERED_BY),$(SUITES))' check) \
		>$(BUILD)/coverage/log 2>&1
	@grep -E '^[0-9]+%|:[FE]:' $(BUILD)/coverage/log
	@tests/coverage.sh $(BUILD)/coverage engine checker
coverage-build: $(PROGRAMS) $(BUILD)/tests/run $(BUILD)/tests/mkimage $(BUILD)/tests/interplay \
	$(BUILD)/tests/fail_calls.so

valgrind: $(PROGRAMS) $(BUILD)/tests/mkimage $(BUILD)/tests/fail_calls.so   ## the programs on a sample of the corpus, under valgrind
	@tests/valgrind.sh $(BUILD)

demo: $(BUILD)/qcheck           ## a damaged image and what qcheck says about it
	@tests/demo.sh $(BUILD)/qcheck

# Objects as well: lint looks into them for variables that should not be.
lint: all $(BUILD)/tests/run    ## rules of the house, other compilers' warnings
	@BUILD=$(BUILD) tests/lint.sh $(filter-out $(OPT),$(CFLAGS_ALL)) $(CFLAGS_TEST)

san:                            ## all tests under ASan and UBSan
	$(MAKE) BUILD=$(BUILD)/san OPT='-O1 -g -fno-omit-frame-pointer' \
		SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=all' check

deps:                           ## install what is needed and missing (Debian, Ubuntu)
	@tests/deps.sh

MAN_PAGES   := $(wildcard checker/qcheck.1 engine/qsnap.1 faultinj/qcrash.1)
COMPLETIONS := $(wildcard checker/qcheck.bash engine/qsnap.bash faultinj/qcrash.bash)
BIN_DIR     := $(DESTDIR)$(PREFIX)/bin
MAN_DIR     := $(DESTDIR)$(PREFIX)/share/man/man1
BASH_DIR    := $(DESTDIR)$(PREFIX)/share/bash-completion/completions

install: $(PROGRAMS)            ## install to $(DESTDIR)$(PREFIX)
	install -d $(BIN_DIR) $(MAN_DIR) $(BASH_DIR)
	for f in $(PROGRAMS); do install -m 755 $$f $(BIN_DIR) || exit; done
	for f in $(MAN_PAGES); do install -m 644 $$f $(MAN_DIR) || exit; done
	for f in $(COMPLETIONS); do \
		install -m 644 $$f $(BASH_DIR)/$$(basename $$f .bash) || exit; done

uninstall:                      ## remove what install put there
	rm -f $(addprefix $(BIN_DIR)/,$(notdir $(PROGRAMS))) \
		$(addprefix $(MAN_DIR)/,$(notdir $(MAN_PAGES))) \
		$(addprefix $(BASH_DIR)/,$(basename $(notdir $(COMPLETIONS))))

N ?= 2000
SEED ?= 1
oracle: $(PROGRAMS) $(BUILD)/tests/oracle   ## compare with qemu-img check: N=2000 SEED=1
	$(BUILD)/tests/oracle $(N) $(SEED)

repair-trial: $(PROGRAMS) $(BUILD)/tests/trial   ## repair against qemu-img check -r all: N=2000 SEED=1
	$(BUILD)/tests/trial $(N) $(SEED)

bench-repair: $(BUILD)/qcheck   ## refcounts made anew, beside qemu-img check -r all: SIZE=1T
	tests/bench_repair.sh $(BUILD)/qcheck $(SIZE)

bench: bench-check bench-repair bench-snap bench-crash    ## speed, each against its peer in the same run

clean:                          ## remove what was built
	rm -rf $(BUILD)

help:                           ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1\t/p' Makefile | expand -t 14

.PHONY: all check coverage coverage-build fields flips fuzz limits valgrind crash agreement mutants bench bench-check bench-repair bench-crash \
        bench-snap demo lint san deps install uninstall \
        oracle repair-trial interplay clean help FORCE
-include $(wildcard $(BUILD)/*/*.d)
endif
