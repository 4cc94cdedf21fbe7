/* Loaded first (LD_PRELOAD), it takes AVX and what builds on it from what CPUID tells, so that libraries choose the
 * kernels of an older x86 processor. Linux on processors with CPUID faulting: elsewhere it says so and exits. */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_CPUID_SET
#define ARCH_CPUID_SET 0x1012
#endif

static int cpuid_allowed(int allowed) { return (int)syscall(SYS_arch_prctl, ARCH_CPUID_SET, allowed); }

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)r[REG_RIP];
    unsigned a = (unsigned)r[REG_RAX], c = (unsigned)r[REG_RCX], leaf = a, sub = c, b, d;
    (void)number, (void)info;
    if (at[0] != 0x0f || at[1] != 0xa2) { /* another fault: let it be fatal */
        signal(SIGSEGV, SIG_DFL);
        return;
    }
    cpuid_allowed(1);
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    cpuid_allowed(0);
    if (leaf == 1) c &= ~(1u << 12 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 29); /* FMA, XSAVE, OSXSAVE, AVX, F16C */
    if (leaf == 7) { a = sub ? 0 : a; b &= ~(1u << 5 | 0xdc230000u); c = 0; d = 0; } /* AVX2, AVX-512, AMX */
    if (leaf == 0xd) a = b = c = d = 0;
    r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
    r[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    if (cpuid_allowed(0)) {
        fputs("hide_avx: this processor or system cannot hide CPUID.\n", stderr);
        _exit(3);
    }
}
