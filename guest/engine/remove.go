//go:build linux

package engine

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"dhow/guest/db"
	"dhow/internal/errdefs"
)

// ContainerRemove removes a container; with force, also one that runs.
func (e *Engine) ContainerRemove(ctx context.Context, id string, o RemoveOptions) error {
	b, err := e.get(id)
	if err != nil {
		return err
	}
	if o.Link {
		return errdefs.New(errdefs.Unimplemented, "container links (rm --link) are not supported yet by this version of dhow")
	}
	return e.remove(context.WithoutCancel(ctx), b, id, o.Force)
}

// remove ends b and takes away what is its own. name is what the user called
// it, for sentences.
func (e *Engine) remove(ctx context.Context, b *box, name string, force bool) error {
	for {
		r := b.copy()
		switch {
		case b.isRemoved():
			return errdefs.New(errdefs.NotFound, "No such container: %s", name)
		case r.State.Status == container.StateRemoving:
			return errdefs.New(errdefs.Conflict, "removal of container %s is already in progress", name)
		case !r.State.alive():
		case !force && r.State.Status == container.StatePaused:
			return errdefs.New(errdefs.Conflict, "cannot remove container %q: container is paused and must be unpaused first", "/"+r.Name)
		case !force:
			return errdefs.New(errdefs.Conflict, "cannot remove container %q: container is %s: stop the container before removing or force remove",
				"/"+r.Name, r.State.Status)
		default:
			if err := e.kill(ctx, b, unix.SIGKILL); err != nil && !errdefs.Is(err, errdefs.Conflict) {
				return fmt.Errorf("cannot remove container %q: could not kill container: %w", "/"+r.Name, err)
			}
		}
		done, err := e.removeLocked(ctx, b, name)
		if done || err != nil {
			return err
		}
	}
}

// removeLocked returns false where the container came to life again meanwhile.
func (e *Engine) removeLocked(ctx context.Context, b *box, name string) (bool, error) {
	b.life.Lock()
	defer b.life.Unlock()
	b.mu.Lock()
	if b.removed {
		b.mu.Unlock()
		return false, errdefs.New(errdefs.NotFound, "No such container: %s", name)
	}
	if b.rec.State.alive() {
		b.mu.Unlock()
		return false, nil
	}
	err := b.rec.State.transition(evRemove)
	b.mu.Unlock()
	if err != nil {
		return false, err
	}
	err = db.Update(ctx, e.o.DB, func(ctx context.Context, _ *bbolt.Tx) error {
		if err := e.o.Store.RemoveContainer(ctx, b.id); err != nil {
			return err
		}
		return deleteRecord(ctx, e.o.DB, b.id)
	})
	if err != nil {
		b.mu.Lock()
		_ = b.rec.State.transition(evFail)
		b.rec.State.Error = err.Error()
		b.mu.Unlock()
		return false, fmt.Errorf("cannot remove container %q: %w", "/"+b.copy().Name, err)
	}
	// From here on it is gone: what is left on disk is swept at the next start.
	if err := os.RemoveAll(b.dir); err != nil {
		e.log.Warn("remove the container's directory", "container", b.id, "err", err)
	}
	r := b.copy()
	e.mu.Lock()
	delete(e.byID, b.id)
	if e.byName[r.Name] == b.id {
		delete(e.byName, r.Name)
	}
	e.forgetExecs(b)
	e.mu.Unlock()
	b.mu.Lock()
	b.removed = true
	b.rec.State.Error = "" // those who wait for the removal are told of the exit, as by dockerd
	next := b.io
	close(b.gone)
	b.mu.Unlock()
	if next != nil {
		next.finish(0) // a client that waits for a start that will not come
	}
	e.event(b, events.ActionDestroy, nil)
	b.notify(true)
	return true, nil
}

func (b *box) isRemoved() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.removed
}

// ContainerPrune removes the containers that do not run.
func (e *Engine) ContainerPrune(ctx context.Context, f Filters) (container.PruneReport, error) {
	rep := container.PruneReport{ContainersDeleted: []string{}}
	if err := f.check("label", "label!", "until"); err != nil {
		return rep, err
	}
	until, err := f.until(time.Now())
	if err != nil {
		return rep, err
	}
	for _, b := range e.all() {
		if err := ctx.Err(); err != nil {
			return rep, err
		}
		r := b.copy()
		if r.State.alive() || !until.IsZero() && r.Created.After(until) || !f.labels("label", r.Config.Labels) ||
			len(f["label!"]) > 0 && f.labels("label!", r.Config.Labels) {
			continue
		}
		usage, uerr := e.o.Store.ContainerUsage(ctx, b.id)
		if err := e.remove(context.WithoutCancel(ctx), b, b.id, false); err != nil {
			e.log.Warn("prune", "container", b.id, "err", err)
			continue
		}
		rep.ContainersDeleted = append(rep.ContainersDeleted, b.id)
		if uerr == nil {
			rep.SpaceReclaimed += uint64(usage.Bytes)
		}
	}
	e.o.Events.Publish(events.ContainerEventType, events.ActionPrune, "", map[string]string{"reclaimed": fmt.Sprint(rep.SpaceReclaimed)})
	return rep, nil
}
