//go:build linux

package engine

import (
	"context"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"

	"dhow/guest/runtime"
	"dhow/internal/errdefs"
	"dhow/internal/steps"
)

// cleanupTimeout bounds the work after a container's process has ended.
const cleanupTimeout = 30 * time.Second

// watch waits for the process of one life and does what follows its end:
// outputs are drained, the runtime and the network let go, the record says how
// it ended, and those who wait are told.
func (e *Engine) watch(b *box, t Task, io *stdio) {
	<-t.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	e.ended(ctx, b, t, io)
	b.mu.Lock()
	auto := b.rec.HostConfig.AutoRemove && !b.restarting
	b.mu.Unlock()
	if !auto {
		return
	}
	if err := e.remove(ctx, b, b.id, true); err != nil && !errdefs.Is(err, errdefs.NotFound) && !errdefs.Is(err, errdefs.Conflict) {
		e.log.Error("remove container after its end", "container", b.id, "err", err)
	}
}

// ended does the work after an exit. Each part is done whatever became of the
// others.
func (e *Engine) ended(ctx context.Context, b *box, t Task, io *stdio) {
	b.life.Lock()
	defer b.life.Unlock()
	exit := t.Exit()
	var after Record
	var again *revival
	for _, s := range e.timed(ctx, "exit", b.id, []steps.Step{
		{Name: "drain streams", Do: func(context.Context) error { io.finish(drainTimeout); return nil }},
		{Name: "close log", Do: func(context.Context) error { return b.log.close() }},
		{Name: "detach network", Do: func(ctx context.Context) error {
			if e.o.Network == nil {
				return nil
			}
			return e.o.Network.Detach(ctx, b.id)
		}},
		{Name: "delete process", Do: t.Delete},
		{Name: "decide what follows", Do: func(context.Context) (err error) { after, again, err = e.exited(b, exit); return err }},
		// On disk before anybody can see it: an exit code that was seen is not lost.
		{Name: "record the exit", Do: func(ctx context.Context) error { return e.saveRecord(ctx, &after) }},
		{Name: "change state", Do: func(context.Context) error { b.leave(after, io); return nil }},
	}) {
		if err := s.Do(ctx); err != nil {
			e.log.Error("after the end of a container", "container", b.id, "step", s.Name, "err", err)
		}
	}
	if exit.OOMKilled {
		e.event(b, events.ActionOOM, nil)
	}
	e.event(b, events.ActionDie, map[string]string{
		"exitCode": strconv.Itoa(exit.Code), "execDuration": strconv.Itoa(int(exit.At.Sub(b.copy().State.StartedAt).Seconds())),
	})
	b.notify(false)
	if again != nil {
		e.lives.Go(func() { e.revive(b, again) })
	}
}

// exited returns the record of b as it is after the exit, and whether the
// container comes back by itself.
func (e *Engine) exited(b *box, exit runtime.Exit) (Record, *revival, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	again := b.planRestart(exit, e.isStopping())
	ev := evExit
	if again != nil {
		ev = evRestart
	}
	r := b.rec
	s := &r.State
	err := s.transition(ev)
	s.Pid, s.ExitCode, s.OOMKilled, s.FinishedAt = 0, exit.Code, exit.OOMKilled, exit.At.UTC()
	return r, again, err
}

// leave ends the life of io: b is as after says.
func (b *box) leave(after Record, io *stdio) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rec.State = after.State
	b.task, b.endpoint = nil, nil
	if b.io == io {
		b.io = nil
	}
}
