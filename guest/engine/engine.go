//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/guest/event"
	"dhow/internal/errdefs"
	"dhow/internal/steps"
)

// runtimeName is the name of the one runtime.
const runtimeName = "dhow"

// Options are the engine's parts and facts. Root is the directory that holds
// its own files (containers/<id>/…); Version, Commit (of the sources),
// APIVersion and MinAPIVersion are what `version` answers.
type Options struct {
	Root    string
	DB      *bbolt.DB
	Store   Store
	Runtime Runtime
	Network Network
	Events  *event.Bus
	Log     *slog.Logger

	Version, Commit, APIVersion, MinAPIVersion string

	CPUs int
	// HostGateway is what --add-host name:host-gateway stands for; the zero value
	// means the gateway of the container's network, or with NoHostGateway that
	// containers may not reach the host: then it is refused.
	HostGateway   netip.Addr
	NoHostGateway bool
	// BootTime is when the machine started: a container that ran before it ended
	// with it.
	BootTime time.Time
}

// Engine holds the use cases. It is safe for concurrent use.
type Engine struct {
	o   Options
	log *slog.Logger

	mu     sync.RWMutex
	byID   map[string]*box
	byName map[string]string // name → ID; reserved before the container is visible
	execs  map[string]*execution
	past   []endedExec       // those of execs that ended, the oldest first
	making map[*box]struct{} // being created: they hold their image, and nobody sees them yet

	lives    sync.WaitGroup // one per process that is watched, and per restart that waits
	stopping chan struct{}  // closed by Stop: nothing comes back by itself any more
	stopOnce sync.Once
}

// Open reads the records, ends what a former life of the agent left behind
// and returns the engine. It starts nothing.
func Open(ctx context.Context, o Options) (*Engine, error) {
	e := &Engine{o: o, log: o.Log, byID: map[string]*box{}, byName: map[string]string{}, execs: map[string]*execution{}, making: map[*box]struct{}{}, stopping: make(chan struct{})}
	if err := db.Migrate(o.DB, "engine", migrations...); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(o.Root, "containers"), 0o710); err != nil {
		return nil, err
	}
	if err := e.restore(ctx); err != nil {
		return nil, fmt.Errorf("restore containers: %w", err)
	}
	return e, nil
}

// box is a container as the engine holds it.
//
// life is held while the container changes in several steps (start, the work
// after an exit, removal), never while one waits for another process; mu is
// held for moments and guards what follows it. life is taken before mu.
type box struct {
	id  string
	dir string
	log *jsonLog // nil: driver none

	life sync.Mutex

	mu       sync.Mutex
	rec      Record
	io       *stdio      // of the next life while it does not run; nil until somebody needs it
	task     Task        // nil while it does not run
	spec     *specs.Spec // as create made it, until the first start takes it
	endpoint *Endpoint   // nil while it does not run
	waiters  map[*waiter]struct{}
	execs    map[string]*execution
	// restarting: a person's restart is under way, so the exit removes nothing.
	restarting bool
	revival    *revival      // the restart by policy that waits
	delay      time.Duration // of the last one
	removed    bool
	gone       chan struct{} // closed when removed
}

func (e *Engine) newBox(r Record) (*box, error) {
	b := &box{
		id: r.ID, dir: filepath.Join(e.o.Root, "containers", r.ID), rec: r,
		waiters: map[*waiter]struct{}{}, execs: map[string]*execution{}, gone: make(chan struct{}),
	}
	var err error
	b.log, err = newLog(b.logPath(), r.Config, r.HostConfig)
	return b, err
}

func (b *box) logPath() string { return filepath.Join(b.dir, b.id+"-json.log") }

// copy returns the record as it is now. What its pointers lead to is never
// changed in place.
func (b *box) copy() Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rec
}

// streams returns the streams of the life that runs, or else of the next one.
func (b *box) streams() *stdio {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.io == nil {
		b.io = newStdio(b.rec.Config.Tty, b.rec.Config.OpenStdin)
		if b.removed {
			b.io.finish(0)
		}
	}
	return b.io
}

// get finds a container by ID, name or unique prefix of an ID.
func (e *Engine) get(nameOrID string) (*box, error) {
	if nameOrID == "" {
		return nil, errdefs.New(errdefs.Invalid, "invalid container name or ID: value is empty")
	}
	e.mu.RLock()
	defer e.mu.RUnlock()
	if b := e.byID[nameOrID]; b != nil {
		return b, nil
	}
	if b := e.byID[e.byName[strings.TrimPrefix(nameOrID, "/")]]; b != nil {
		return b, nil
	}
	var found *box
	for id, b := range e.byID {
		if !strings.HasPrefix(id, nameOrID) {
			continue
		}
		if found != nil {
			return nil, errdefs.New(errdefs.Invalid, "multiple IDs found with provided prefix: %s", nameOrID)
		}
		found = b
	}
	if found == nil {
		return nil, errdefs.New(errdefs.NotFound, "No such container: %s", nameOrID)
	}
	return found, nil
}

// all returns the containers, the youngest first.
func (e *Engine) all() []*box {
	e.mu.RLock()
	list := slices.Collect(maps.Values(e.byID))
	e.mu.RUnlock()
	created := make(map[*box]time.Time, len(list))
	for _, b := range list {
		created[b] = b.copy().Created
	}
	slices.SortFunc(list, func(a, b *box) int {
		if c := created[b].Compare(created[a]); c != 0 {
			return c
		}
		return strings.Compare(a.id, b.id)
	})
	return list
}

// reserve takes name for id, or makes one where it is "".
func (e *Engine) reserve(id, name string) (string, error) {
	if name != "" {
		var err error
		if name, err = checkName(name); err != nil {
			return "", err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if name == "" {
		name = generateName(id, func(n string) bool { _, ok := e.byName[n]; return ok })
	}
	if other, ok := e.byName[name]; ok {
		return "", errdefs.New(errdefs.Conflict, "Conflict. The container name %q is already in use by container %q. "+
			"You have to remove (or rename) that container to be able to reuse that name.", "/"+name, other)
	}
	e.byName[name] = id
	return name, nil
}

// release gives name back if id has it.
func (e *Engine) release(id, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byName[name] == id {
		delete(e.byName, name)
	}
}

// save writes the record of b. A container that goes with its process has
// nothing to say to a later life of the agent, which removes it whatever its
// state was: its starts and exits cost no flush.
func (e *Engine) save(ctx context.Context, b *box) error {
	r := b.copy()
	return e.saveRecord(ctx, &r)
}

func (e *Engine) saveRecord(ctx context.Context, r *Record) error {
	if r.HostConfig.AutoRemove {
		return nil
	}
	return putRecord(context.WithoutCancel(ctx), e.o.DB, r)
}

// timed has each step log how long it took, where that is asked for.
func (e *Engine) timed(ctx context.Context, what, id string, list []steps.Step) []steps.Step {
	if !e.log.Enabled(ctx, slog.LevelDebug) {
		return list
	}
	for i, s := range list {
		list[i].Do = func(ctx context.Context) error {
			begun := time.Now()
			err := s.Do(ctx)
			e.log.Debug(what, "container", shortID(id), "step", s.Name, "took", time.Since(begun), "err", err)
			return err
		}
	}
	return list
}

// Running returns how many containers run.
func (e *Engine) Running() int {
	n := 0
	for _, b := range e.all() {
		if r := b.copy(); r.State.alive() {
			n++
		}
	}
	return n
}

// Stop stops every container at the same time, as the machine's power-off
// does: its own stop signal, then after grace SIGKILL. It returns when all
// have ended or ctx does. What runs then is not "stopped by a person": restart
// policies bring it back with the machine.
func (e *Engine) Stop(ctx context.Context, grace time.Duration) error {
	e.stopOnce.Do(func() { close(e.stopping) })
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	seconds := int(grace.Round(time.Second) / time.Second)
	for _, b := range e.all() {
		wg.Go(func() {
			if r := b.copy(); !r.State.alive() {
				b.settle() // it may be about to run
			}
			if err := e.stop(ctx, b, StopOptions{Timeout: &seconds}); err != nil && !errdefs.Is(err, errdefs.NotModified) {
				mu.Lock()
				errs = append(errs, fmt.Errorf("container %s: %w", shortID(b.id), err))
				mu.Unlock()
			}
		})
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	var late error
	select {
	case <-ended:
	case <-ctx.Done():
		late = ctx.Err()
	}
	mu.Lock()
	defer mu.Unlock()
	return errors.Join(append(errs, late)...)
}

// Close waits for the work that follows the ends of processes, at most until
// ctx ends. Containers that run are left as they are.
func (e *Engine) Close(ctx context.Context) error {
	done := make(chan struct{})
	go func() { e.lives.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
