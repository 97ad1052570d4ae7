"""The CPython half of tests/twin.rs: runs each program on asyncio under a stepped clock.

Reads programs on stdin (the format is described in program.rs), prints one trace per program on
stdout. What each operation does, and what it writes into the trace, mirrors on_coloop.rs line by
line.
"""

import asyncio
import contextvars
import sys
import warnings

GUARD = 50_000  # ticks; below the 86,400 at which asyncio cuts a wait in two
VAR = contextvars.ContextVar("var")


class SteppedLoop(asyncio.base_events.BaseEventLoop):
    """asyncio's own loop, but for the clock and the selector. A tick is asyncio's second."""

    def __init__(self):
        super().__init__()
        self.now = 0
        self._selector = self
        # A timer is due when its deadline is below now + resolution: with whole ticks, when it is
        # <= now.
        self._clock_resolution = 0.5

    def time(self):
        return self.now

    def select(self, timeout):
        assert timeout is not None, "the guard's timer is always there"
        assert timeout == int(timeout)
        self.now += int(timeout)
        return []

    def _process_events(self, events):
        pass

    def _write_to_self(self):
        pass


class Sleep:
    """coloop's sleep: when its deadline is due, the task itself stands in the line.

    The timer of asyncio.sleep settles a future, which queues the task for the turn after.
    """

    _asyncio_future_blocking = False

    def __init__(self, loop, when):
        self.loop = loop
        self.when = when
        self.cancelled = False

    def __await__(self):
        self._asyncio_future_blocking = True
        yield self

    def get_loop(self):
        return self.loop

    def add_done_callback(self, wakeup, *, context):
        self.wakeup = wakeup
        self.context = context
        self.timer = self.loop.call_at(self.when, wakeup, self, context=context)

    def cancel(self, msg=None):
        if self.cancelled or not self.timer._scheduled:
            return False  # the task is in the line already
        self.timer.cancel()
        self.cancelled = True
        self.loop.call_soon(self.wakeup, self, context=self.context)
        return True

    def result(self):
        if self.cancelled:
            raise asyncio.CancelledError


class Boom(Exception):
    pass


class Task:
    def __init__(self):
        self.task = None
        self.awaits = None  # the future it is suspended on, when that is a promise or a task
        self.asked = False  # cancellation was requested (Task.cancelling() came with 3.11)
        self.taken = False  # somebody awaits it, or has put a done-callback on it


class World:
    def __init__(self, program):
        self.program = program
        self.trace = []
        self.handles = []  # [handle, has begun to run]
        self.promises = []
        self.dones = []  # [promise, callback]
        self.tasks = []
        self.deadlines = set()
        self.over = False
        self.loop = SteppedLoop()
        self.loop.set_exception_handler(self.report)

    def log(self, text):
        current = asyncio.current_task(self.loop)
        me = "-"
        for i, record in enumerate(self.tasks):
            if current is not None and record.task is current:
                me = "t%d" % i
        self.trace.append("%d %s %s %s" % (self.loop.now, me, VAR.get("-"), text))

    def log_aside(self, text):
        # What the loop does between two pieces of user code has no task and no variable.
        self.trace.append("%d %s" % (self.loop.now, text))

    def report(self, _loop, context):
        if not self.over:  # afterwards the garbage collector reports what the program left behind
            assert isinstance(context.get("exception"), Boom), context
            self.log_aside("report")

    def deadline(self, ticks):
        # No two timers of one program have the same deadline: asyncio leaves their order open.
        ticks = max(ticks, 0)
        while ticks in self.deadlines:
            ticks += 1
        self.deadlines.add(ticks)
        return ticks

    def run(self):
        for body, how in self.program.segments:
            self.run_body(body)
            guard = self.loop.call_at(self.deadline(self.loop.now + GUARD), self.stop_by_guard)
            if how[0] == "forever":
                self.loop.run_forever()
                self.log("returned")
            else:
                self.drain()
                run_until = self.run_until_promise if how[1] == "p" else self.run_until_task
                run_until(int(how[2]))
            guard.cancel()
        self.over = True
        for record in self.tasks:
            record.task._log_destroy_pending = False
        self.loop.close()
        return self.trace

    def stop_by_guard(self):
        self.log("guard")
        self.loop.stop()

    def drain(self):
        turns = 0
        while self.loop._ready:
            self.loop.stop()
            self.loop.run_forever()
            turns += 1
        self.log("drained %d" % turns)

    def run_until_promise(self, k):
        i = pick(self.promises, k)
        if i is None:
            return self.log("until none")
        self.log("until p%d %s" % (i, self.run_until(self.promises[i])))

    def run_until_task(self, k):
        i = pick(self.tasks, k)
        if i is None:
            return self.log("until none")
        record = self.tasks[i]
        if record.taken:
            return self.log("until t%d taken" % i)
        record.taken = True
        outcome = self.run_until(record.task)
        record.taken = outcome != "stopped"
        self.log("until t%d %s" % (i, outcome))

    def run_until(self, future):
        state = pending(future)
        try:
            return "%s %d" % (state, self.loop.run_until_complete(future))
        except asyncio.CancelledError:
            return "%s cancelled" % state
        except RuntimeError as error:
            assert "stopped before" in str(error), error
            return "stopped"

    def run_body(self, body):
        self.log("b%d" % body)
        for op in self.program.bodies[body]:
            getattr(self, "op_" + op[0])(*op[1:])

    async def run_task(self, i, body):
        self.log("b%d" % body)
        try:
            for op in self.program.bodies[body]:
                step = getattr(self, "step_" + op[0], None)
                if step is None:
                    getattr(self, "op_" + op[0])(*op[1:])
                else:
                    await step(i, *op[1:])
        except asyncio.CancelledError:
            self.log_aside("t%d dropped" % i)
            raise
        self.log("t%d ends" % i)
        return i

    def callback(self, body):
        entry = [None, False]

        def call():
            entry[1] = True
            self.run_body(body)

        self.handles.append(entry)
        return call

    def made(self, what, handle):
        self.handles[-1][0] = handle
        when = " %d" % handle.when() if hasattr(handle, "when") else ""
        self.log("%s h%d%s" % (what, len(self.handles) - 1, when))

    def op_soon(self, body):
        self.made("soon", self.loop.call_soon(self.callback(body)))

    def op_post(self, body):
        empty = contextvars.Context()
        handle = self.loop.call_soon_threadsafe(self.callback(body), context=empty)
        self.made("post", handle)

    def op_later(self, ticks, body):
        now = self.loop.time()
        delay = self.deadline(now + ticks) - now
        self.made("later", self.loop.call_later(delay, self.callback(body)))

    def op_at(self, ticks, body):
        now = self.loop.time()
        when = self.deadline(now + ticks)
        what = "at past" if when <= now else "at future"
        self.made(what, self.loop.call_at(when, self.callback(body)))

    def op_cancel(self, k):
        i = pick(self.handles, k)
        if i is None:
            return self.log("cancel none")
        handle, ran = self.handles[i]
        live = not ran and not handle.cancelled()
        handle.cancel()
        self.log("cancel h%d %s" % (i, word(live)))

    def op_peek(self, k):
        i = pick(self.handles, k)
        if i is None:
            return self.log("peek none")
        handle, ran = self.handles[i]
        # asyncio's late cancel() marks a handle that has run, coloop's does not: not compared.
        state = "ran" if ran else "cancelled" if handle.cancelled() else "live"
        when = " %d" % handle.when() if hasattr(handle, "when") else ""
        self.log("peek h%d %s%s" % (i, state, when))

    def op_promise(self):
        self.promises.append(self.loop.create_future())
        self.log("promise p%d" % (len(self.promises) - 1))

    def op_settle(self, k, value):
        i = pick(self.promises, k)
        if i is None:
            return self.log("settle none")
        promise = self.promises[i]
        fresh = not promise.done()
        if fresh:
            promise.set_result(value)
        self.log("settle p%d %s" % (i, word(fresh)))

    def op_pcancel(self, k):
        i = pick(self.promises, k)
        if i is None:
            return self.log("pcancel none")
        self.log("pcancel p%d %s" % (i, word(self.promises[i].cancel())))

    def op_pdrop(self, k):
        # A resolver that is dropped cancels its promise; asyncio has one object for both.
        i = pick(self.promises, k)
        if i is None:
            return self.log("pdrop none")
        self.promises[i].cancel()
        self.log("pdrop p%d" % i)

    def op_look(self, k):
        i = pick(self.promises, k)
        if i is None:
            return self.log("look none")
        promise = self.promises[i]
        state = "cancelled" if promise.cancelled() else "settled" if promise.done() else "pending"
        self.log("look p%d %s" % (i, state))

    def op_ondone(self, k, body):
        i = pick(self.promises, k)
        if i is None:
            return self.log("ondone none")
        number = len(self.dones)

        def call(promise):
            value = "cancelled" if promise.cancelled() else promise.result()
            self.log("d%d p%d %s" % (number, i, value))
            self.run_body(body)

        self.log("ondone p%d %s" % (i, pending(self.promises[i])))
        self.dones.append((self.promises[i], call))
        self.promises[i].add_done_callback(call)

    def op_undone(self, k):
        i = pick(self.dones, k)
        if i is None:
            return self.log("undone none")
        promise, call = self.dones[i]
        self.log("undone d%d %s" % (i, word(promise.remove_done_callback(call) > 0)))

    def op_task(self, body):
        record = Task()
        i = len(self.tasks)
        self.tasks.append(record)
        record.task = self.loop.create_task(self.run_task(i, body))
        self.log("task t%d" % i)

    def op_tcancel(self, k):
        i = pick(self.tasks, k)
        if i is None:
            return self.log("tcancel none")
        record = self.tasks[i]
        if isinstance(record.awaits, asyncio.Task) and not record.awaits.done():
            return self.log("tcancel t%d skipped" % i)
        record.asked = record.asked or not record.task.done()
        self.log("tcancel t%d %s" % (i, word(record.task.cancel())))

    def op_tlook(self, k):
        i = pick(self.tasks, k)
        if i is None:
            return self.log("tlook none")
        self.log("tlook t%d %s" % (i, pending(self.tasks[i].task)))

    def op_tdone(self, k, body):
        i = pick(self.tasks, k)
        if i is None:
            return self.log("tdone none")
        record = self.tasks[i]
        if record.taken:
            return self.log("tdone t%d taken" % i)
        record.taken = True

        def call(task):
            value = "cancelled" if task.cancelled() else task.result()
            self.log("done t%d %s" % (i, value))
            self.run_body(body)

        self.log("tdone t%d %s" % (i, pending(record.task)))
        record.task.add_done_callback(call)

    async def step_cancelme(self, i):
        self.tasks[i].asked = True
        self.log("cancelme %s" % word(self.tasks[i].task.cancel()))

    async def step_yield(self, i):
        await asyncio.sleep(0)
        self.log("yielded")

    async def step_sleep(self, i, ticks):
        await Sleep(self.loop, self.deadline(self.loop.time() + ticks))
        self.log("slept")

    async def step_awaitp(self, i, k):
        j = pick(self.promises, k)
        if j is None:
            return self.log("awaitp none")
        if self.tasks[i].asked and not self.promises[j].done():
            return self.log("awaitp p%d skipped" % j)
        await self.wait(i, self.promises[j], "awaitp p%d" % j)

    async def step_awaitt(self, i, k):
        j = pick(self.tasks, k)
        record = self.tasks[j]
        if record.taken or i == j:
            return self.log("awaitt t%d %s" % (j, "self" if i == j else "taken"))
        if self.tasks[i].asked and not record.task.done():
            return self.log("awaitt t%d skipped" % j)
        record.taken = True
        await self.wait(i, record.task, "awaitt t%d" % j)

    async def wait(self, i, future, what):
        me = self.tasks[i]
        done = future.done()
        self.log("%s %s" % (what, "done" if done else "pending"))
        me.awaits = future
        try:
            value = await future
        except asyncio.CancelledError:
            if me.asked and not done:
                raise  # this task's own cancellation, which wins over the promise's
            value = "cancelled"
        me.awaits = None
        self.log("%s %s" % (what, value))

    def op_work(self, ticks):
        self.loop.now += ticks
        self.log("work")

    def op_set(self, value):
        VAR.set(value)
        self.log("set")

    def op_stop(self):
        self.log("stop %s" % ("inside" if self.loop.is_running() else "outside"))
        self.loop.stop()

    def op_panic(self):
        self.log("panic")
        raise Boom


def pick(table, k):
    """The k-th from the end, counted round."""
    return len(table) - 1 - k % len(table) if table else None


def pending(future):
    return "done" if future.done() else "pending"


def word(flag):
    return "true" if flag else "false"


class Program:
    def __init__(self):
        self.bodies = []
        self.segments = []


def read(lines):
    program = None
    for line in lines:
        kind, _, rest = line.strip().partition(" ")
        if kind == "P":
            program = Program()
        elif kind == "B":
            ops = []
            for op in rest.partition(":")[2].split(";"):
                words = op.split()
                if words:
                    ops.append([words[0]] + [int(w) for w in words[1:]])
            program.bodies.append(ops)
        elif kind == "S":
            words = rest.split()
            program.segments.append((int(words[0]), words[1:]))
        elif kind == "E":
            yield program


def main():
    warnings.simplefilter("ignore", RuntimeWarning)  # tasks that a program never let begin
    for program in list(read(sys.stdin)):
        for line in contextvars.Context().run(World(program).run):
            print(line)
        print("E")


if __name__ == "__main__":
    main()
