//go:build linux

package engine

import (
	"context"
	"errors"

	"github.com/moby/moby/api/types/container"

	"dhow/internal/errdefs"
)

// waiter is one wait that is armed. result has room for its one value.
type waiter struct {
	cond   container.WaitCondition
	result chan WaitResult
}

// ContainerWait arms a wait and returns at once. The channel delivers one
// result; when ctx ends first, that is its error.
func (e *Engine) ContainerWait(ctx context.Context, id string, cond container.WaitCondition) (<-chan WaitResult, error) {
	switch cond {
	case "":
		cond = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return nil, errdefs.New(errdefs.Invalid, "invalid condition: %q", string(cond))
	}
	b, err := e.get(id)
	if err != nil {
		return nil, err
	}
	return b.wait(ctx, cond), nil
}

func (b *box) wait(ctx context.Context, cond container.WaitCondition) <-chan WaitResult {
	w := &waiter{cond, make(chan WaitResult, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.removed || cond == container.WaitConditionNotRunning && !b.rec.State.alive() {
		w.result <- b.result()
		return w.result
	}
	b.waiters[w] = struct{}{}
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if _, armed := b.waiters[w]; armed {
			delete(b.waiters, w)
			w.result <- WaitResult{ExitCode: -1, Err: ctx.Err()}
		}
	})
	return w.result
}

// result is what a wait is told; the lock is held.
func (b *box) result() WaitResult {
	r := WaitResult{ExitCode: b.rec.State.ExitCode}
	if msg := b.rec.State.Error; msg != "" {
		r.Err = errors.New(msg)
	}
	return r
}

// notify tells those who wait for the exit, and at removal all.
func (b *box) notify(removed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for w := range b.waiters {
		if removed || w.cond != container.WaitConditionRemoved {
			delete(b.waiters, w)
			w.result <- b.result()
		}
	}
}
