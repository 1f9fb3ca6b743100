//go:build linux

package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/store"
	"dhow/internal/errdefs"
)

// ContainerCreate makes a container: image → snapshot → record, the last two
// in one metadata transaction, which makes it exist.
//
// The volumes that an image declares are data only: until there is
// guest/volume, what is written there is in the container's writable layer, as
// all else is, and goes with the container.
func (e *Engine) ContainerCreate(ctx context.Context, o CreateOptions) (container.CreateResponse, error) {
	none := container.CreateResponse{Warnings: []string{}}
	if err := checkConfig(o.Config); err != nil {
		return none, err
	}
	host := o.HostConfig
	if host == nil {
		host = &container.HostConfig{}
	}
	if err := checkHost(host, e.o.CPUs); err != nil {
		return none, err
	}
	if err := e.checkGateway(host); err != nil {
		return none, err
	}
	nets, err := e.networksOf(host, o.Networking)
	if err != nil {
		return none, err
	}
	img, warnings, err := e.imageFor(ctx, o)
	if err != nil {
		return none, err
	}
	warnings = append(warnings, unserved(o.Config, host)...)
	if err := mergeConfig(o.Config, imageConfig(img)); err != nil {
		return none, err
	}
	id := newID()
	setDefaults(o.Config, host, id)
	name, err := e.reserve(id, o.Name)
	if err != nil {
		return none, err
	}
	b, err := e.newBox(Record{
		ID: id, Name: name, Created: time.Now().UTC(), ImageID: img.ID, Manifest: &img.Manifest,
		Config: o.Config, HostConfig: host, Networks: nets,
		State: State{Status: container.StateCreated},
	})
	if err != nil {
		e.release(id, name)
		return none, err
	}
	e.mu.Lock()
	e.making[b] = struct{}{}
	e.mu.Unlock()
	if b.spec, err = e.specFor(b, &b.rec); err == nil {
		// What applies is shown, also where the defaults apply.
		host.MaskedPaths, host.ReadonlyPaths = b.spec.Linux.MaskedPaths, b.spec.Linux.ReadonlyPaths
		err = e.make(ctx, b)
	}
	e.mu.Lock()
	delete(e.making, b)
	if err == nil {
		e.byID[id] = b
	}
	e.mu.Unlock()
	if err != nil {
		e.release(id, name)
		return none, err
	}
	e.event(b, events.ActionCreate, nil)
	return container.CreateResponse{ID: id, Warnings: warnings}, nil
}

// make writes what a container is on disk: its directory, then snapshot and
// record in one transaction. On an error nothing is left.
func (e *Engine) make(ctx context.Context, b *box) error {
	if err := os.Mkdir(b.dir, 0o710); err != nil {
		return fmt.Errorf("make the container's directory: %w", err)
	}
	err := db.Update(ctx, e.o.DB, func(ctx context.Context, _ *bbolt.Tx) error {
		prepare := e.o.Store.PrepareContainer
		if b.rec.HostConfig.AutoRemove {
			// Nobody sees its files again after a crash: nothing waits for the disk.
			prepare = e.o.Store.PrepareEphemeral
		}
		if err := prepare(ctx, b.id, b.rec.ImageID); err != nil {
			return err
		}
		return putRecord(ctx, e.o.DB, &b.rec)
	})
	if err != nil {
		_ = os.RemoveAll(b.dir)
		return fmt.Errorf("create container %s: %w", shortID(b.id), err)
	}
	return nil
}

// imageFor finds the image of a request, and warns where it is of another
// platform than the machine.
func (e *Engine) imageFor(ctx context.Context, o CreateOptions) (store.Image, []string, error) {
	warnings := []string{}
	if o.Config.Image == "" {
		return store.Image{}, nil, errdefs.New(errdefs.Invalid, "no image was given to create the container from")
	}
	img, err := e.o.Store.Get(ctx, o.Config.Image)
	if err != nil {
		return img, nil, err
	}
	have := platforms.Normalize(img.Image.Platform)
	if o.Platform != nil && !platforms.Only(*o.Platform).Match(have) {
		return img, nil, store.PlatformMismatch(o.Config.Image, *o.Platform)
	}
	if mine := platforms.DefaultSpec(); o.Platform == nil && have.Architecture != "" && have.Architecture != runtime.GOARCH {
		warnings = append(warnings, fmt.Sprintf("The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
			platforms.FormatAll(have), platforms.FormatAll(mine)))
	}
	return img, warnings, nil
}

// networksOf returns what a container asks for of each of its networks.
func (e *Engine) networksOf(h *container.HostConfig, n *network.NetworkingConfig) (map[string]*network.EndpointSettings, error) {
	mode := string(h.NetworkMode)
	asked := map[string]*network.EndpointSettings{}
	if n != nil {
		for name, s := range n.EndpointsConfig {
			if s == nil {
				return nil, errdefs.New(errdefs.Invalid, "invalid config for network %s: EndpointsConfig is nil", name)
			}
			if name == network.NetworkDefault {
				name = mode
			}
			asked[name] = s.Copy()
		}
	}
	if asked[mode] == nil {
		asked[mode] = &network.EndpointSettings{}
	}
	if len(asked) > 1 {
		return nil, errdefs.New(errdefs.Unimplemented, "more than one network per container is not supported yet by this version of dhow")
	}
	// Whether there is such a network is for the start to say: to docker's CLI a
	// NotFound of a create is an image that it has to pull.
	if len(asked[mode].Aliases) > 0 && mode == network.NetworkBridge {
		return nil, errdefs.New(errdefs.Invalid, "invalid endpoint settings:\nnetwork-scoped aliases are only supported for user-defined networks")
	}
	return asked, nil
}

// restore reads what a former life of the agent left: containers that ran are
// exited, and what belongs to none is removed, in the store and on disk.
func (e *Engine) restore(ctx context.Context) error {
	recs, bad, err := readRecords(ctx, e.o.DB)
	if err != nil {
		return err
	}
	snapshots, err := e.o.Store.Containers(ctx)
	if err != nil {
		return err
	}
	has := map[string]bool{}
	for _, k := range snapshots {
		has[k] = true
	}
	var drop []string // records and snapshots that go
	for _, r := range recs {
		switch {
		// A removal that was begun and those that go with their process are finished.
		// Without its snapshot (a store that was repaired) a container has no data.
		case r.HostConfig.AutoRemove, r.State.Status == container.StateRemoving, r.State.Status == container.StateDead, !has[r.ID]:
			drop = append(drop, r.ID)
			delete(has, r.ID)
			continue
		}
		delete(has, r.ID)
		b, err := e.newBox(*r)
		if err != nil {
			bad = append(bad, broken{r, err})
			continue
		}
		e.byID[r.ID], e.byName[r.Name] = b, r.ID
	}
	for _, r := range bad {
		delete(has, r.ID)
		e.bury(r)
	}
	for k := range has {
		drop = append(drop, k)
	}
	if len(drop) > 0 {
		e.log.Info("removing containers that a former life of the agent left", "count", len(drop))
		err := db.Update(ctx, e.o.DB, func(ctx context.Context, _ *bbolt.Tx) error {
			for _, id := range drop {
				if err := e.o.Store.RemoveContainer(ctx, id); err != nil {
					return err
				}
				if err := deleteRecord(ctx, e.o.DB, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := e.sweepDirectories(); err != nil {
		return err
	}
	return e.endLost(ctx)
}

// bury makes r a dead container, which can be seen and removed, and nothing
// else: no other one has to suffer from it. Its record stays as it is, since a
// dhow that can read it may come.
func (e *Engine) bury(r broken) {
	e.log.Error("a container cannot be used", "container", r.ID, "err", r.err)
	if r.Config == nil {
		r.Config = &container.Config{}
	}
	if r.HostConfig == nil {
		r.HostConfig = &container.HostConfig{}
	}
	r.State = State{Status: container.StateDead, Error: errdefs.Sentence(r.err), ExitCode: r.State.ExitCode, StartedAt: r.State.StartedAt, FinishedAt: r.State.FinishedAt}
	for _, other := range []string{shortID(r.ID), r.ID} {
		if _, taken := e.byName[r.Name]; taken || r.Name == "" {
			r.Name = other
		}
	}
	b, _ := e.newBox(*r.Record) // its log is refused or not: a dead container's is not read
	e.byID[r.ID], e.byName[r.Name] = b, r.ID
}

// sweepDirectories removes the directories of containers that are no more, and
// makes those that a crash right after a create lost.
func (e *Engine) sweepDirectories() error {
	root := filepath.Join(e.o.Root, "containers")
	list, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, d := range list {
		if e.byID[d.Name()] != nil {
			have[d.Name()] = true
		} else if err := os.RemoveAll(filepath.Join(root, d.Name())); err != nil {
			return err
		}
	}
	for id, b := range e.byID {
		if !have[id] {
			if err := os.Mkdir(b.dir, 0o710); err != nil {
				return err
			}
		}
	}
	return nil
}

// endLost ends the containers whose processes a crash of agent or machine took:
// code 255, and the time of the machine's start where they ran in its former
// life, as dockerd says.
func (e *Engine) endLost(ctx context.Context) error {
	var lost []*box
	for _, b := range e.byID {
		if !b.rec.State.alive() {
			continue
		}
		s := &b.rec.State
		ran := s.StartedAt
		if err := s.transition(evExit); err != nil {
			return fmt.Errorf("container %s: %w", b.id, err)
		}
		s.Pid, s.ExitCode, s.FinishedAt = 0, 255, time.Now().UTC()
		if ran.Before(e.o.BootTime) {
			s.FinishedAt = e.o.BootTime.UTC()
		}
		lost = append(lost, b)
	}
	if len(lost) == 0 {
		return nil
	}
	return db.Update(ctx, e.o.DB, func(ctx context.Context, _ *bbolt.Tx) error {
		for _, b := range lost {
			if err := putRecord(ctx, e.o.DB, &b.rec); err != nil {
				return err
			}
		}
		return nil
	})
}
