/* SPDX-License-Identifier: Apache-2.0 */

/* Calls, timers and tasks, without any network. */

#include "tests/test.h"

#include "blobstore/net-internal.h"

static struct loop loop;
static char told[64]; /* who ran, in order */
static int n_wakes;

static void tell(char who)
{
	size_t n = strlen(told);

	assert_true(n + 1 < sizeof(told));
	told[n] = who;
	told[n + 1] = '\0';
}

static void wake(struct loop *l)
{
	n_wakes++;
}

static int begin(void **state)
{
	loop_init(&loop, wake);
	told[0] = '\0';
	n_wakes = 0;
	return 0;
}

static int end(void **state)
{
	loop_deinit(&loop);
	return 0;
}

struct actor {
	struct loop_call call;
	struct loop_timer timer;
	struct loop_task task;
	char name;
	struct actor *victim;
};

static void on_call(struct loop_call *call)
{
	tell(containerof(call, struct actor, call)->name);
}

static void on_timer(struct loop_timer *timer)
{
	struct actor *a = containerof(timer, struct actor, timer);

	tell(a->name);
	if (a->victim)
		loop_timer_clear(&a->victim->timer);
}

static void on_stop(struct loop_task *task)
{
	struct actor *a = containerof(task, struct actor, task);

	tell(a->name);
	loop_task_end(task);
	if (a->victim)
		loop_task_end(&a->victim->task);
}

static struct actor actor(char name)
{
	return (struct actor){
		.call.fn = on_call, .timer.fn = on_timer, .task.stop = on_stop, .name = name};
}

static void runs_calls_once_and_in_order(void **state)
{
	struct actor a = actor('a'), b = actor('b'), c = actor('c');

	assert_true(loop_post(&loop, &a.call));
	assert_true(loop_post(&loop, &b.call));
	assert_true(loop_post(&loop, &a.call));
	assert_true(loop_post(&loop, &c.call));
	assert_int_equal(n_wakes, 3);
	loop_unpost(&loop, &b.call);
	loop_unpost(&loop, &b.call);
	assert_true(loop_run(&loop));
	assert_string_equal(told, "ac");
	assert_true(loop_post(&loop, &a.call));
	assert_true(loop_run(&loop));
	assert_string_equal(told, "aca");
}

static void runs_timers_when_they_are_due(void **state)
{
	struct actor a = actor('a'), b = actor('b'), c = actor('c');
	uint64_t now = now_ns();

	loop_timer_set(&loop, &a.timer, now + 3600 * NS_PER_S);
	loop_timer_set(&loop, &b.timer, 0);
	loop_timer_set(&loop, &c.timer, 0);
	loop_timer_clear(&c.timer);
	assert_int_equal(loop_patience_ms(&loop), 0);
	loop_run(&loop);
	assert_string_equal(told, "b");
	assert_false(b.timer.is_armed);
	assert_int_equal(loop_patience_ms(&loop), 60000);
	loop_timer_set(&loop, &a.timer, now_ns() + 500 * NS_PER_MS);
	assert_in_range(loop_patience_ms(&loop), 1, 500);
	loop_timer_set(&loop, &a.timer, 1);
	loop_run(&loop);
	assert_string_equal(told, "ba");
}

static void a_timer_may_clear_another_that_is_due(void **state)
{
	struct actor a = actor('a'), b = actor('b');

	a.victim = &b;
	b.victim = &a;
	loop_timer_set(&loop, &a.timer, 0);
	loop_timer_set(&loop, &b.timer, 0);
	loop_run(&loop);
	assert_int_equal(strlen(told), 1);
}

static void closing_runs_calls_and_stops_tasks(void **state)
{
	struct actor a = actor('a'), b = actor('b'), c = actor('c'), d = actor('d');

	loop_task_begin(&loop, &b.task);
	loop_task_begin(&loop, &a.task);
	loop_task_begin(&loop, &c.task);
	c.victim = &b; /* stopping one may end another */
	assert_true(loop_post(&loop, &d.call));
	loop_close(&loop);
	assert_false(loop_post(&loop, &a.call));
	assert_false(loop_run(&loop));
	assert_string_equal(told, "dca");
}

#define in_loop(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		in_loop(runs_calls_once_and_in_order),
		in_loop(runs_timers_when_they_are_due),
		in_loop(a_timer_may_clear_another_that_is_due),
		in_loop(closing_runs_calls_and_stops_tasks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
