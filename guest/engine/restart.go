//go:build linux

package engine

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/container"

	"dhow/guest/runtime"
	"dhow/internal/errdefs"
)

// dockerd's back-off of restarts by policy: it doubles from first to last, and
// begins again after a life of at least healthy.
const (
	restartFirst   = 100 * time.Millisecond
	restartLast    = time.Minute
	restartHealthy = 10 * time.Second
)

// backoff is the delay before the next restart, after one of before and a life
// of ran.
func backoff(before, ran time.Duration) time.Duration {
	if ran >= restartHealthy || before == 0 {
		return restartFirst
	}
	return min(2*before, restartLast)
}

// comesBack reports whether r's policy starts it again after it ended with
// code. stopped: a person ended it.
func comesBack(r *Record, code int, stopped bool) bool {
	switch p := r.HostConfig.RestartPolicy; {
	case stopped:
		return false
	case p.IsAlways(), p.IsUnlessStopped():
		return true
	case p.IsOnFailure():
		return code != 0 && (p.MaximumRetryCount == 0 || r.RestartCount < p.MaximumRetryCount)
	}
	return false
}

// revival is a restart by policy that waits for its time. cancel ends it.
type revival struct {
	cancel chan struct{}
	delay  time.Duration
}

// planRestart decides, with the lock held, whether the container comes back
// after exit, and if so notes it.
func (b *box) planRestart(exit runtime.Exit, stopping bool) *revival {
	ran := exit.At.Sub(b.rec.State.StartedAt)
	if stopping || b.restarting || !comesBack(&b.rec, exit.Code, b.rec.ManuallyStopped) {
		b.delay = 0
		return nil
	}
	b.delay = backoff(b.delay, ran)
	b.revival = &revival{cancel: make(chan struct{}), delay: b.delay}
	b.rec.RestartCount++
	return b.revival
}

// stopsForGood ends a restart by policy that waits, if there is one, and with
// byPerson has none follow the next exit.
func (b *box) stopsForGood(byPerson bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rec.ManuallyStopped = b.rec.ManuallyStopped || byPerson
	if b.revival != nil {
		close(b.revival.cancel)
		b.revival = nil
	}
}

// revive waits and starts the container again.
func (e *Engine) revive(b *box, v *revival) {
	t := time.NewTimer(v.delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-v.cancel:
	case <-e.stopping:
	}
	b.mu.Lock()
	mine := b.revival == v
	if mine {
		b.revival = nil
	}
	b.mu.Unlock()
	ctx := context.Background()
	if mine && !e.isStopping() {
		err := e.startBy(ctx, b, true)
		if err == nil || errdefs.Is(err, errdefs.NotModified) {
			return
		}
		e.log.Warn("restart by policy", "container", b.id, "err", err)
	}
	e.giveUp(ctx, b)
}

// giveUp makes a container that waited for its restart an exited one.
func (e *Engine) giveUp(ctx context.Context, b *box) {
	b.life.Lock()
	defer b.life.Unlock()
	b.mu.Lock()
	if b.rec.State.Status != container.StateRestarting {
		b.mu.Unlock()
		return // a person started or removed it
	}
	err := b.rec.State.transition(evExit)
	b.mu.Unlock()
	if err == nil {
		err = e.save(ctx, b)
	}
	if err != nil {
		e.log.Error("end of container", "container", b.id, "err", err)
	}
	b.notify(false)
}

func (e *Engine) isStopping() bool {
	select {
	case <-e.stopping:
		return true
	default:
		return false
	}
}

// Resume starts the containers whose policy says so after the agent's or the
// machine's start. It returns when all were tried, or ctx ends.
func (e *Engine) Resume(ctx context.Context) {
	for _, b := range e.all() {
		if ctx.Err() != nil || e.isStopping() {
			return
		}
		r := b.copy()
		if r.State.Status != container.StateExited || r.State.StartedAt.IsZero() {
			continue
		}
		// always means always: what a person stopped comes back with the machine, too.
		stopped := r.ManuallyStopped && !r.HostConfig.RestartPolicy.IsAlways()
		if !comesBack(&r, r.State.ExitCode, stopped) {
			continue
		}
		if err := e.start(context.WithoutCancel(ctx), b); err != nil && !errdefs.Is(err, errdefs.NotModified) {
			e.log.Warn("start container by its restart policy", "container", b.id, "err", err)
		}
	}
}
