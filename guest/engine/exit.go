//go:build linux

package engine

import (
	"context"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"

	"dhow/internal/errdefs"
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

func (e *Engine) ended(ctx context.Context, b *box, t Task, io *stdio) {
	b.life.Lock()
	defer b.life.Unlock()
	exit := t.Exit()
	io.finish(drainTimeout)
	if err := b.log.close(); err != nil {
		e.log.Warn("container log", "container", b.id, "err", err)
	}
	if e.o.Network != nil {
		if err := e.o.Network.Detach(ctx, b.id); err != nil {
			e.log.Error("detach container from its network", "container", b.id, "err", err)
		}
	}
	if err := t.Delete(ctx); err != nil {
		e.log.Error("clean up after container", "container", b.id, "err", err)
	}
	b.mu.Lock()
	s := &b.rec.State
	err := s.transition(evExit)
	s.Pid, s.ExitCode, s.OOMKilled, s.FinishedAt = 0, exit.Code, exit.OOMKilled, exit.At.UTC()
	ran := exit.At.Sub(s.StartedAt)
	b.task, b.endpoint = nil, nil
	if b.io == io {
		b.io = nil
	}
	b.mu.Unlock()
	if err != nil {
		e.log.Error("end of container", "container", b.id, "err", err)
	}
	// On disk before anybody is told: an exit code that was seen is not lost.
	if err := e.save(ctx, b); err != nil {
		e.log.Error("save container", "container", b.id, "err", err)
	}
	if exit.OOMKilled {
		e.event(b, events.ActionOOM, nil)
	}
	e.event(b, events.ActionDie, map[string]string{
		"exitCode": strconv.Itoa(exit.Code), "execDuration": strconv.Itoa(int(ran.Seconds())),
	})
	b.notify(false)
}
