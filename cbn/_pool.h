/* A pool of threads that share out the tasks of one call.

   Why not OpenMP: its caller waits at a barrier for every thread of the team, also for one that a
   busy processor has not started yet, and so a call of 20 us was seen to take 8 ms beside another
   process. Here the caller works too and waits only for threads that have come to work.

   Tasks are cut into one contiguous share for each thread; who is done with its own takes from the
   shares of the others. So each core works on the same part of an array in every pass and in every
   call, which its cache may still hold, and one that is busy elsewhere delays nobody.

   One call at a time uses the pool; a call that finds it taken does all of its own tasks. */

#ifndef CBN_POOL_H
#define CBN_POOL_H

#include <stddef.h>

#define CBN_GROUP 32 /* channels whose sums, of four doubles each, a task can leave for the next */

typedef struct {
    ptrdiff_t next; /* the task that the same thread will do after this one, or -1 */
    int carries;    /* whether `kept` holds what the task before left for this one; 0 at first */
    double kept[4 * CBN_GROUP];
} cbn_turn;

typedef void (*cbn_task)(const void *work, ptrdiff_t task, cbn_turn *turn);

/* How tasks are shared out, where not in their order alone: each wants to know the next one, or each
   thread begins with its last. Not both: the next one is not known to those that go backwards. */
enum { CBN_LOOK_AHEAD = 1, CBN_BACKWARDS = 2 };

/* Streamed stores are weakly ordered: a thread ends its tasks with this before others may read. */
static inline void cbn_fence(void) {
#if defined(__SSE2__)
    __builtin_ia32_sfence();
#endif
}

/* All tasks, by one thread. */
static void cbn_alone(cbn_task run, const void *work, ptrdiff_t tasks, int how) {
    cbn_turn turn;
    ptrdiff_t task;
    turn.carries = 0;
    for (task = 0; task < tasks; task++) {
        turn.next = how & CBN_LOOK_AHEAD && task + 1 < tasks ? task + 1 : -1;
        run(work, how & CBN_BACKWARDS ? tasks - 1 - task : task, &turn);
    }
    cbn_fence();
}

#if defined(CBN_SERIAL) || defined(_WIN32)

#define CBN_THREADED 0

static int cbn_processors(void) { return 1; }

static void cbn_share(cbn_task run, const void *work, ptrdiff_t tasks, int threads, int how) {
    (void)threads;
    cbn_alone(run, work, tasks, how);
}

#else

#define CBN_THREADED 1

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getcpu */
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define CBN_MOST_WORKERS 255
#define CBN_SPIN_NS 1000000 /* how long an idle thread looks for work before it sleeps */
#define CBN_STACK (1 << 20)
#define CBN_MOST_MOVED 8    /* with more cores than these, one will be idle */

typedef struct {
    _Alignas(128) atomic_ptrdiff_t next; /* the next task of this share */
    ptrdiff_t begin, end;
    int asleep;          /* under the pool's lock, as `wake` */
    pthread_cond_t wake;
#ifdef __linux__ /* of the thread that sleeps, under the pool's lock */
    int thread;
    int moved;     /* whether it may not run on the caller's core until it has woken up */
    cpu_set_t all, others; /* where it may run then, and until then */
#endif
} cbn_part;

static struct {
    pthread_mutex_t taken; /* held by the call that uses the pool */
    pthread_mutex_t lock;  /* for threads that sleep */
    int workers;           /* threads made so far, beside the caller */
    cbn_task run;
    const void *work;
    int how;
    atomic_int threads;    /* that work on this call, the caller included */
    atomic_int core;       /* where the caller runs, or -1 */
    _Alignas(128) atomic_uint call;  /* counts the calls */
    _Alignas(128) atomic_int gate;   /* 1 while a call is open, + 2 for each thread inside */
    _Alignas(128) atomic_int asleep;
    cbn_part parts[CBN_MOST_WORKERS + 1];
} cbn_pool = {.taken = PTHREAD_MUTEX_INITIALIZER,
              .lock = PTHREAD_MUTEX_INITIALIZER};

static inline void cbn_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static inline int64_t cbn_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Linux likes to wake a thread on the core of who wakes it, where it would wait for the caller's
   time slice, some milliseconds, to end; and a thread that spins there takes turns with the caller.
   So threads are kept off that core: when woken by the caller, later by themselves. They keep
   their right to all cores, and the system moves them as it likes between calls. */
#ifdef __linux__

static inline int cbn_core(void) { return sched_getcpu(); }

static int cbn_others(int thread, int core, cpu_set_t *all, cpu_set_t *others) {
    if (core < 0 || core >= CPU_SETSIZE || sched_getaffinity(thread, sizeof *all, all)) return 0;
    *others = *all;
    CPU_CLR(core, others);
    return CPU_COUNT(others) > 0;
}

/* Back to all cores, unless somebody else has said meanwhile where this thread is to run. */
static void cbn_widen_again(const cpu_set_t *others, const cpu_set_t *all) {
    cpu_set_t now;
    if (!sched_getaffinity(0, sizeof now, &now) && CPU_EQUAL(&now, others))
        sched_setaffinity(0, sizeof *all, all);
}

static void cbn_leave_core(int core) {
    cpu_set_t all, others;
    if (core == cbn_core() && cbn_others(0, core, &all, &others) &&
        !sched_setaffinity(0, sizeof others, &others))
        cbn_widen_again(&others, &all);
}

/* A new thread may run where the process may, and not only where the thread that made it may. */
static void cbn_begin(void) {
    cpu_set_t all;
    if (!sched_getaffinity(getpid(), sizeof all, &all)) sched_setaffinity(0, sizeof all, &all);
}

static void cbn_fall_asleep(cbn_part *own) { own->thread = (int)syscall(SYS_gettid); }

static void cbn_wake_elsewhere(cbn_part *part, int core) {
    if (part->thread && !part->moved && cbn_others(part->thread, core, &part->all, &part->others))
        part->moved = !sched_setaffinity(part->thread, sizeof part->others, &part->others);
}

static void cbn_wake_up(cbn_part *own) {
    if (own->moved) cbn_widen_again(&own->others, &own->all);
    own->thread = own->moved = 0;
}

#else

static inline int cbn_core(void) { return -1; }
static void cbn_leave_core(int core) { (void)core; }
static void cbn_begin(void) {}
static void cbn_fall_asleep(cbn_part *own) { (void)own; }
static void cbn_wake_elsewhere(cbn_part *part, int core) { (void)part, (void)core; }
static void cbn_wake_up(cbn_part *own) { (void)own; }

#endif

/* How many processors this thread may run on; 0 where the system does not say. */
static int cbn_processors(void) {
#ifdef __linux__
    cpu_set_t set;
    if (!sched_getaffinity(0, sizeof set, &set)) return CPU_COUNT(&set);
#endif
    return 0;
}

/* The next task of a share, or -1. */
static inline ptrdiff_t cbn_take(cbn_part *part) {
    ptrdiff_t task = atomic_fetch_add_explicit(&part->next, 1, memory_order_relaxed);
    if (task >= part->end) return -1;
    return cbn_pool.how & CBN_BACKWARDS ? part->begin + part->end - 1 - task : task;
}

/* Take tasks until there are none left: the own share first, where a task may look ahead, then
   those of the others. */
static void cbn_work(int self) {
    int k, threads = atomic_load_explicit(&cbn_pool.threads, memory_order_relaxed);
    ptrdiff_t task;
    cbn_turn turn;
    turn.carries = 0;
    for (k = 0; k < threads; k++) {
        cbn_part *part = &cbn_pool.parts[(self + k) % threads];
        int ahead = k == 0 && cbn_pool.how & CBN_LOOK_AHEAD;
        for (task = cbn_take(part); task >= 0; task = ahead ? turn.next : cbn_take(part)) {
            turn.next = ahead ? cbn_take(part) : -1;
            cbn_pool.run(cbn_pool.work, task, &turn);
        }
    }
    cbn_fence();
}

/* Whether there is a call that a thread has not seen and that wants it. */
static inline int cbn_called(int self, unsigned *seen) {
    unsigned call = atomic_load(&cbn_pool.call);
    if (call == *seen) return 0;
    *seen = call;
    return self < atomic_load(&cbn_pool.threads);
}

static void *cbn_serve(void *argument) {
    int self = (int)(intptr_t)argument, count, call;
    unsigned seen = 0;
    cbn_begin();
    for (;;) {
        int64_t until = 0;
        for (count = 0; !(call = cbn_called(self, &seen)); count++) {
            cbn_relax();
            if (count % 64) continue;
            cbn_leave_core(atomic_load_explicit(&cbn_pool.core, memory_order_relaxed));
            if (!until) until = cbn_now() + CBN_SPIN_NS;
            if (cbn_now() < until) continue;
            pthread_mutex_lock(&cbn_pool.lock);
            cbn_fall_asleep(&cbn_pool.parts[self]);
            atomic_fetch_add(&cbn_pool.asleep, 1);
            cbn_pool.parts[self].asleep = 1;
            while (!(call = cbn_called(self, &seen)))
                pthread_cond_wait(&cbn_pool.parts[self].wake, &cbn_pool.lock);
            cbn_pool.parts[self].asleep = 0;
            atomic_fetch_sub(&cbn_pool.asleep, 1);
            cbn_wake_up(&cbn_pool.parts[self]);
            pthread_mutex_unlock(&cbn_pool.lock);
            break;
        }
        cbn_leave_core(atomic_load_explicit(&cbn_pool.core, memory_order_relaxed));
        /* Inside, the call cannot end; what it asks for is read only there. */
        int gate = atomic_load(&cbn_pool.gate);
        while (gate & 1 && !atomic_compare_exchange_weak(&cbn_pool.gate, &gate, gate + 2)) {}
        if (gate & 1) {
            if (self < cbn_pool.threads) cbn_work(self);
            atomic_fetch_sub(&cbn_pool.gate, 2);
        }
    }
    return NULL;
}

/* A child process has none of the threads. */
static void cbn_pool_forget(void) {
    pthread_mutex_init(&cbn_pool.taken, NULL);
    pthread_mutex_init(&cbn_pool.lock, NULL);
    cbn_pool.workers = 0;
    atomic_store(&cbn_pool.gate, 0);
    atomic_store(&cbn_pool.asleep, 0);
    atomic_store(&cbn_pool.call, 0);
#ifdef __linux__
    for (int k = 0; k <= CBN_MOST_WORKERS; k++)
        cbn_pool.parts[k].thread = cbn_pool.parts[k].moved = 0;
#endif
}

/* Make threads up to a number; fewer where the system refuses. They take no signals. */
static void cbn_pool_grow(int workers) {
    static int watched = 0;
    sigset_t all, before;
    pthread_attr_t attributes;
    if (!watched) {
        pthread_atfork(NULL, NULL, cbn_pool_forget);
        watched = 1;
    }
    sigfillset(&all);
    sigdelset(&all, SIGSEGV), sigdelset(&all, SIGBUS); /* faults are of the thread: let handlers */
    sigdelset(&all, SIGFPE), sigdelset(&all, SIGILL);  /* such as faulthandler's report them */
    if (pthread_attr_init(&attributes)) return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, CBN_STACK);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (cbn_pool.workers < workers) {
        pthread_t thread;
        void *self = (void *)(intptr_t)(cbn_pool.workers + 1);
        pthread_cond_init(&cbn_pool.parts[cbn_pool.workers + 1].wake, NULL);
        cbn_pool.parts[cbn_pool.workers + 1].asleep = 0;
        if (pthread_create(&thread, &attributes, cbn_serve, self)) break;
        cbn_pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* run(work, task) for each task below `tasks`, by up to `threads` threads, the caller among them;
   returns when all are done. The tasks must not depend on each other. */
static void cbn_share(cbn_task run, const void *work, ptrdiff_t tasks, int threads, int how) {
    int k, core;
    if (threads > tasks) threads = (int)tasks;
    if (threads > CBN_MOST_WORKERS) threads = CBN_MOST_WORKERS;
    if (threads < 2 || pthread_mutex_trylock(&cbn_pool.taken)) {
        cbn_alone(run, work, tasks, how);
        return;
    }
    if (cbn_pool.workers < threads - 1) cbn_pool_grow(threads - 1);
    core = cbn_core();
    cbn_pool.run = run;
    cbn_pool.work = work;
    cbn_pool.how = how;
    atomic_store(&cbn_pool.threads, threads);
    for (k = 0; k < threads; k++) {
        ptrdiff_t begin = tasks * k / threads;
        atomic_store_explicit(&cbn_pool.parts[k].next, begin, memory_order_relaxed);
        cbn_pool.parts[k].begin = begin;
        cbn_pool.parts[k].end = tasks * (k + 1) / threads;
    }
    atomic_store_explicit(&cbn_pool.core, core, memory_order_relaxed);
    atomic_store(&cbn_pool.gate, 1);
    atomic_fetch_add(&cbn_pool.call, 1);
    if (atomic_load(&cbn_pool.asleep)) {
        pthread_mutex_lock(&cbn_pool.lock);
        for (k = 1; k < threads; k++) {
            if (!cbn_pool.parts[k].asleep) continue;
            if (k <= CBN_MOST_MOVED) cbn_wake_elsewhere(&cbn_pool.parts[k], core);
            pthread_cond_signal(&cbn_pool.parts[k].wake);
        }
        pthread_mutex_unlock(&cbn_pool.lock);
    }
    cbn_work(0);
    atomic_fetch_sub(&cbn_pool.gate, 1); /* nobody else comes in */
    for (k = 0; atomic_load(&cbn_pool.gate); k++) {
        if (k < 1000) cbn_relax();
        else sched_yield(); /* a thread inside may wait for this core */
    }
    pthread_mutex_unlock(&cbn_pool.taken);
}

#endif
#endif
