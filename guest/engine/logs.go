//go:build linux

package engine

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/container"

	"dhow/internal/errdefs"
)

// ContainerLogs calls emit for the records of a container's log.
func (e *Engine) ContainerLogs(ctx context.Context, id string, o LogOptions, start func(terminal bool) error, emit func(LogMessage) error) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	if !o.Stdout && !o.Stderr {
		return errdefs.New(errdefs.Invalid, "You must choose at least one stream")
	}
	b.mu.Lock()
	r, running := b.rec, b.task != nil && b.io != nil
	var end <-chan struct{}
	if o.Follow && running {
		end = b.io.done
	}
	b.mu.Unlock()
	if s := r.State.Status; s == container.StateRemoving || s == container.StateDead {
		return errdefs.New(errdefs.Conflict, "can not get logs from container which is dead or marked for removal")
	}
	if b.log == nil {
		return errdefs.New(errdefs.Unimplemented, "configured logging driver does not support reading")
	}
	rd, err := b.log.reader(o.Tail)
	if err != nil {
		return err
	}
	defer rd.close()
	if err := start(r.Config.Tty); err != nil {
		return err
	}
	if end != nil && !o.Until.IsZero() {
		// The log ends for this reader at that moment, though no record may come to show it.
		if end, err = endAt(ctx, end, o.Until); err != nil {
			return nil
		}
	}
	return rd.run(ctx, end, func(rec record) (bool, error) {
		if !o.Since.IsZero() && rec.Time.Before(o.Since) {
			return true, nil
		}
		if !o.Until.IsZero() && rec.Time.After(o.Until) {
			return false, nil
		}
		if rec.Stream == "stderr" && !o.Stderr || rec.Stream != "stderr" && !o.Stdout {
			return true, nil
		}
		return true, emit(LogMessage{Stream: rec.Stream, Time: rec.Time, Line: []byte(rec.Log), Attrs: rec.Attrs})
	})
}

// endAt returns a channel that is closed when end is, or at the moment until.
func endAt(ctx context.Context, end <-chan struct{}, until time.Time) (<-chan struct{}, error) {
	ctx, cancel := context.WithDeadline(ctx, until)
	go func() {
		defer cancel()
		select {
		case <-end:
		case <-ctx.Done():
		}
	}()
	return ctx.Done(), nil
}
