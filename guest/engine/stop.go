//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"dhow/internal/errdefs"
)

// defaultStopTimeout is how long a container gets between its stop signal and
// SIGKILL where nobody says otherwise (dockerd's figure).
const defaultStopTimeout = 10 * time.Second

// killTimeout is how long the end of a process may take after SIGKILL.
const killTimeout = 10 * time.Second

func notRunning(id string) error {
	return errdefs.New(errdefs.Conflict, "container %s is not running", id)
}

// ContainerStop stops a container: its stop signal, then SIGKILL.
func (e *Engine) ContainerStop(ctx context.Context, id string, o StopOptions) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	if err := e.stop(context.WithoutCancel(ctx), b, o); err != nil {
		if errdefs.Is(err, errdefs.NotModified) || errdefs.Is(err, errdefs.Invalid) {
			return err
		}
		return errdefs.Wrap(errdefs.ClassOf(err), err, "cannot stop container: %s: %s", id, errdefs.Sentence(err))
	}
	return nil
}

func (e *Engine) stop(ctx context.Context, b *box, o StopOptions) error {
	r := b.copy()
	if !r.State.alive() {
		return errdefs.New(errdefs.NotModified, "Container is already stopped")
	}
	sig, timeout, err := stopPlan(r.Config, o)
	if err != nil {
		return err
	}
	if err := e.signal(ctx, b, sig); err != nil && !errdefs.Is(err, errdefs.Conflict) {
		e.log.Info("stop signal failed, killing", "container", b.id, "signal", int(sig), "err", err)
		timeout = 0
	}
	if !b.awaitEnd(ctx, timeout) {
		if err := e.kill(ctx, b, unix.SIGKILL); err != nil && !errdefs.Is(err, errdefs.Conflict) {
			return err
		}
	}
	e.event(b, events.ActionStop, nil)
	return nil
}

// stopPlan gives signal and timeout of a stop; a negative timeout is no end.
func stopPlan(c *container.Config, o StopOptions) (unix.Signal, time.Duration, error) {
	name := o.Signal
	if name == "" {
		name = c.StopSignal
	}
	sig := unix.SIGTERM
	if name != "" {
		var err error
		if sig, err = parseSignal(name); err != nil {
			return 0, 0, err
		}
	}
	seconds := o.Timeout
	if seconds == nil {
		seconds = c.StopTimeout
	}
	if seconds == nil {
		return sig, defaultStopTimeout, nil
	}
	return sig, time.Duration(*seconds) * time.Second, nil
}

// within reports whether a wait ended in time; a negative timeout is no end.
func within[T any](ctx context.Context, end <-chan T, timeout time.Duration) bool {
	var late <-chan time.Time
	if timeout >= 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-end:
		return true
	case <-late:
	case <-ctx.Done():
	}
	return false
}

// awaitEnd reports whether the container ended for good in time. A wait ends
// with each exit, also with one that a restart by policy follows.
func (b *box) awaitEnd(ctx context.Context, timeout time.Duration) bool {
	if timeout >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	for {
		if r := b.copy(); !r.State.alive() {
			b.settle()
			return true
		}
		if (<-b.wait(ctx, container.WaitConditionNotRunning)).Err != nil && ctx.Err() != nil {
			return false
		}
	}
}

// settle returns when what follows the last exit is done, and told, too.
func (b *box) settle() {
	b.life.Lock()
	defer b.life.Unlock()
}

// ContainerRestart stops and starts a container; one that goes with its
// process stays.
func (e *Engine) ContainerRestart(ctx context.Context, id string, o StopOptions) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	b.mu.Lock()
	b.restarting = true
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		b.restarting = false
		b.mu.Unlock()
	}()
	fail := func(err error) error {
		return errdefs.Wrap(errdefs.ClassOf(err), err, "Cannot restart container %s: %s", id, errdefs.Sentence(err))
	}
	if err := e.stop(ctx, b, o); err != nil && !errdefs.Is(err, errdefs.NotModified) {
		return fail(err)
	}
	if err := e.start(ctx, b); err != nil && !errdefs.Is(err, errdefs.NotModified) {
		return fail(err)
	}
	e.event(b, events.ActionRestart, nil)
	return nil
}

// ContainerKill sends a signal ("" is SIGKILL, which is waited for).
func (e *Engine) ContainerKill(ctx context.Context, id, signal string) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	sig := unix.SIGKILL
	if signal != "" {
		if sig, err = parseSignal(signal); err != nil {
			return err
		}
	}
	ctx = context.WithoutCancel(ctx)
	if sig == unix.SIGKILL {
		err = e.kill(ctx, b, sig)
	} else {
		err = e.signal(ctx, b, sig)
	}
	if err != nil {
		return errdefs.Wrap(errdefs.ClassOf(err), err, "cannot kill container: %s: %s", id, errdefs.Sentence(err))
	}
	return nil
}

// kill sends sig and waits for the end.
func (e *Engine) kill(ctx context.Context, b *box, sig unix.Signal) error {
	if err := e.signal(ctx, b, sig); err != nil {
		return err
	}
	if !b.awaitEnd(ctx, killTimeout) {
		return errdefs.New(errdefs.Internal, "tried to kill container, but did not receive an exit event")
	}
	return nil
}

// signal sends sig to the first process. A paused container hears its stop
// signal when it goes on: so it goes on.
func (e *Engine) signal(ctx context.Context, b *box, sig unix.Signal) error {
	b.mu.Lock()
	task, r := b.task, b.rec
	b.mu.Unlock()
	if !r.State.alive() || task == nil && r.State.Status != container.StateRestarting {
		return notRunning(b.id)
	}
	stop, _, err := stopPlan(r.Config, StopOptions{})
	ends := err == nil && sig == stop || sig == unix.SIGKILL || r.Config.StopSignal == ""
	if ends {
		b.stopsForGood(!e.isStopping())
	}
	if task == nil {
		return nil // it waits for its restart; that none comes is enough
	}
	if err := task.Signal(ctx, sig, false); err != nil && !errors.Is(err, unix.ESRCH) && !errdefs.Is(err, errdefs.NotFound) {
		return fmt.Errorf("send signal %d: %w", sig, err)
	}
	if ends && r.State.Status == container.StatePaused {
		if err := e.unpause(ctx, b); err != nil && !errdefs.Is(err, errdefs.Conflict) {
			return err
		}
	}
	e.event(b, events.ActionKill, map[string]string{"signal": strconv.Itoa(int(sig))})
	return nil
}

// ContainerPause freezes a container's processes.
func (e *Engine) ContainerPause(ctx context.Context, id string) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	b.life.Lock()
	defer b.life.Unlock()
	b.mu.Lock()
	task, status := b.task, b.rec.State.Status
	b.mu.Unlock()
	switch {
	case status == container.StatePaused:
		return errdefs.New(errdefs.Conflict, "container %s is already paused", b.id)
	case status == container.StateRestarting:
		return errdefs.New(errdefs.Conflict, "container %s is restarting, wait until the container is running", b.id)
	case status != container.StateRunning || task == nil:
		return notRunning(b.id)
	}
	if err := task.Pause(ctx); err != nil {
		return fmt.Errorf("cannot pause container %s: %w", b.id, err)
	}
	return e.moved(ctx, b, evPause, events.ActionPause)
}

// ContainerUnpause lets a frozen container go on.
func (e *Engine) ContainerUnpause(ctx context.Context, id string) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	return e.unpause(ctx, b)
}

func (e *Engine) unpause(ctx context.Context, b *box) error {
	b.life.Lock()
	defer b.life.Unlock()
	b.mu.Lock()
	task, status := b.task, b.rec.State.Status
	b.mu.Unlock()
	if status != container.StatePaused || task == nil {
		return errdefs.New(errdefs.Conflict, "Container %s is not paused", b.id)
	}
	if err := task.Resume(ctx); err != nil {
		return errdefs.Wrap(errdefs.Internal, err, "Cannot unpause container %s: %s", b.id, errdefs.Sentence(err))
	}
	return e.moved(ctx, b, evUnpause, events.ActionUnPause)
}

func (e *Engine) moved(ctx context.Context, b *box, ev change, a events.Action) error {
	b.mu.Lock()
	err := b.rec.State.transition(ev)
	b.mu.Unlock()
	if err != nil {
		return err
	}
	e.event(b, a, nil)
	return nil
}

// ContainerRename gives a container another name.
func (e *Engine) ContainerRename(ctx context.Context, id, name string) error {
	if id == "" || name == "" {
		return errdefs.New(errdefs.Invalid, "Neither old nor new names may be empty")
	}
	b, err := e.get(id)
	if err != nil {
		return err
	}
	b.life.Lock()
	defer b.life.Unlock()
	r := b.copy()
	if r.State.Status == container.StateDead {
		// Its record is not what it was read from: it must not be written.
		return errdefs.New(errdefs.Conflict, "container %s is dead and cannot be renamed: remove it", b.id)
	}
	old := r.Name
	if n, err := checkName(name); err == nil && n == old {
		return errdefs.New(errdefs.Invalid, "Renaming a container with the same name as its current name")
	}
	name, err = e.reserve(b.id, name)
	if err != nil {
		return errdefs.Wrap(errdefs.ClassOf(err), err, "Error when allocating new name: %s", errdefs.Sentence(err))
	}
	r = b.copy()
	r.Name = name
	if err := putRecord(context.WithoutCancel(ctx), e.o.DB, &r); err != nil {
		e.release(b.id, name)
		return err
	}
	b.mu.Lock()
	b.rec.Name = name
	b.mu.Unlock()
	e.release(b.id, old)
	e.event(b, events.ActionRename, map[string]string{"oldName": "/" + old})
	return nil
}
