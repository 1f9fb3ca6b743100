//go:build linux

package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"dhow/guest/db"
	"dhow/guest/event"
	"dhow/guest/runtime"
	"dhow/guest/runtime/cgroup"
	"dhow/guest/store"
	"dhow/guest/store/snapshot"
	"dhow/internal/errdefs"
)

// memStore is a store in memory. Container snapshots follow the transaction
// that the context carries, as the real store's do.
type memStore struct {
	Store // what a test does not need panics
	db    *bbolt.DB
	image store.Image

	mu         sync.Mutex
	containers map[string]bool
	ephemeral  []string // those that PrepareEphemeral made
	failMounts error
}

func newMemStore(d *bbolt.DB) *memStore {
	img := store.Image{ID: digest.FromString("image"), Names: []string{"docker.io/library/box:latest"}, Size: 1000}
	img.Image = dockerspec.DockerOCIImage{Image: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: goArch}}}
	img.Image.Config.Cmd = []string{"sh"}
	img.Image.Config.Env = []string{"PATH=/bin"}
	return &memStore{db: d, image: img, containers: map[string]bool{}}
}

func (s *memStore) Get(_ context.Context, name string) (store.Image, error) {
	if name == "box" || name == s.image.ID.String() {
		return s.image, nil
	}
	return store.Image{}, errdefs.New(errdefs.NotFound, "No such image: %s", name)
}

func (s *memStore) Images(context.Context) ([]store.Image, error) { return []store.Image{s.image}, nil }

func (s *memStore) PrepareContainer(ctx context.Context, key string, _ digest.Digest) error {
	return db.Update(ctx, s.db, func(ctx context.Context, _ *bbolt.Tx) error {
		s.set(key, true)
		db.OnRollback(ctx, s.db, func() { s.set(key, false) })
		return nil
	})
}

func (s *memStore) PrepareEphemeral(ctx context.Context, key string, id digest.Digest) error {
	s.mu.Lock()
	s.ephemeral = append(s.ephemeral, key)
	s.mu.Unlock()
	return s.PrepareContainer(ctx, key, id)
}

func (s *memStore) RemoveContainer(ctx context.Context, key string) error {
	return db.Update(ctx, s.db, func(ctx context.Context, _ *bbolt.Tx) error {
		db.OnCommit(ctx, s.db, func() { s.set(key, false) })
		return nil
	})
}

func (s *memStore) set(key string, there bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if there {
		s.containers[key] = true
	} else {
		delete(s.containers, key)
	}
}

func (s *memStore) Containers(context.Context) (keys []string, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.containers {
		keys = append(keys, k)
	}
	return keys, nil
}

func (s *memStore) ContainerMounts(_ context.Context, key string) ([]snapshot.Mount, error) {
	return []snapshot.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=1/fs", "upperdir=2/fs"}, Dir: "/data"}}, s.failMounts
}

func (s *memStore) ContainerUsage(context.Context, string) (snapshot.Usage, error) {
	return snapshot.Usage{Size: 4096, Bytes: 10}, nil
}

// program is what a fake process runs: it returns its exit code.
type program func(p *proc) int

// memRuntime runs programs as goroutines on real pipes.
type memRuntime struct {
	mu         sync.Mutex
	programs   map[string]program // by the first argument
	live       map[string]bool
	failCreate error
	failStart  error
	failExec   func() error // nil: works
	onCreate   func()       // nil: nothing more happens
}

type proc struct {
	id      string
	args    []string
	in      *os.File
	out     *os.File
	err     *os.File
	signals chan unix.Signal
	done    chan struct{}
	exit    runtime.Exit
	paused  bool
}

func dup(f *os.File) *os.File {
	if f == nil {
		return nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		panic(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func newProc(id string, args []string, o runtime.IO) *proc {
	return &proc{id: id, args: args, in: dup(o.Stdin), out: dup(o.Stdout), err: dup(o.Stderr), signals: make(chan unix.Signal, 10), done: make(chan struct{})}
}

func (p *proc) close() {
	for _, f := range []*os.File{p.in, p.out, p.err} {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (p *proc) run(prog program) {
	code := prog(p)
	p.close()
	p.exit = runtime.Exit{Code: code, At: time.Now()}
	close(p.done)
}

func (p *proc) Pid() int                 { return 42 }
func (p *proc) Terminal() *os.File       { return nil }
func (p *proc) Resize(_, _ uint16) error { return nil }
func (p *proc) Wait() <-chan struct{}    { return p.done }
func (p *proc) Exit() runtime.Exit       { return p.exit }

type memTask struct {
	*proc
	r *memRuntime
}

func (r *memRuntime) Create(_ context.Context, c runtime.CreateConfig) (Task, error) {
	r.mu.Lock()
	on := r.onCreate
	r.mu.Unlock()
	if on != nil {
		on()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failCreate != nil {
		return nil, r.failCreate
	}
	if len(c.Rootfs) == 0 || c.Spec == nil {
		return nil, errors.New("no root or spec")
	}
	r.live[c.ID] = true
	return &memTask{newProc(c.ID, c.Spec.Process.Args, c.IO), r}, nil
}

func (t *memTask) Start(context.Context) error {
	t.r.mu.Lock()
	prog, err := t.r.programs[t.args[0]], t.r.failStart
	t.r.mu.Unlock()
	if err != nil {
		t.close() // it is killed
		return err
	}
	if prog == nil {
		return &runtime.ExecError{Path: t.args[0], Errno: unix.ENOENT, NotInPath: true}
	}
	go t.run(prog)
	return nil
}

func (t *memTask) Signal(_ context.Context, sig unix.Signal, _ bool) error {
	select {
	case t.signals <- sig:
	default:
	}
	return nil
}

func (t *memTask) Pause(context.Context) error                 { t.paused = true; return nil }
func (t *memTask) Resume(context.Context) error                { t.paused = false; return nil }
func (t *memTask) Stats(context.Context) (cgroup.Stats, error) { return cgroup.Stats{}, nil }
func (t *memTask) Processes() ([]int, error)                   { return []int{os.Getpid()}, nil }
func (t *memTask) Delete(context.Context) error {
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	select {
	case <-t.done:
	default:
		t.close() // it never ran
	}
	delete(t.r.live, t.id)
	return nil
}

func (t *memTask) Exec(_ context.Context, c runtime.ExecConfig) (Process, error) {
	t.r.mu.Lock()
	prog, fail := t.r.programs[c.Process.Args[0]], t.r.failExec
	t.r.mu.Unlock()
	if fail != nil {
		return nil, fail()
	}
	if prog == nil {
		return nil, &runtime.ExecError{Path: c.Process.Args[0], Errno: unix.ENOENT, NotInPath: true}
	}
	p := newProc(c.ID, c.Process.Args, c.IO)
	go p.run(prog)
	return p, nil
}

// memNetwork hands out addresses.
type memNetwork struct {
	gone     bool // the network that is not built in
	mu       sync.Mutex
	attached map[string]bool
	fail     error
	onAttach func(Attach) // nil: nothing more happens
}

func (n *memNetwork) Attach(_ context.Context, a Attach) (Endpoint, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail != nil {
		return Endpoint{}, n.fail
	}
	n.attached[a.ContainerID] = true
	if n.onAttach != nil {
		n.onAttach(a)
	}
	return Endpoint{NetworkID: "net1", NetworkName: "bridge", EndpointID: "ep1", Gateway: "172.17.0.1", IPAddress: "172.17.0.2", IPPrefixLen: 16,
		MacAddress: "02:42:ac:11:00:02", DNS: []string{"192.168.127.1"}}, nil
}

func (n *memNetwork) Detach(_ context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.attached, id)
	return nil
}

func (n *memNetwork) Networks() []NetworkInfo {
	list := []NetworkInfo{{ID: "net1", Name: "bridge", Driver: "bridge", Scope: "local", Subnet: "172.17.0.0/16", Gateway: "172.17.0.1"}}
	if !n.gone {
		list = append(list, NetworkInfo{ID: "net2", Name: "shop", Driver: "bridge", Scope: "local", Subnet: "172.18.0.0/16", Gateway: "172.18.0.1"})
	}
	return list
}

// world is an engine with its fakes.
type world struct {
	*Engine
	t       *testing.T
	opts    Options
	store   *memStore
	runtime *memRuntime
	network *memNetwork
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	d, err := db.Open(filepath.Join(dir, "meta.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	w := &world{t: t, store: newMemStore(d), network: &memNetwork{attached: map[string]bool{}}}
	w.runtime = &memRuntime{live: map[string]bool{}, programs: map[string]program{
		"true":  func(*proc) int { return 0 },
		"false": func(*proc) int { return 1 },
		"hello": func(p *proc) int {
			fmt.Fprintln(p.out, "hello")
			fmt.Fprintln(p.err, "world")
			return 3
		},
		"cat": func(p *proc) int {
			_, _ = io.Copy(p.out, p.in)
			return 0
		},
		"sleep": func(p *proc) int { return 128 + int(<-p.signals) },
		"deaf": func(p *proc) int {
			for sig := range p.signals {
				if sig == unix.SIGKILL {
					break
				}
			}
			return 137
		},
	}}
	w.opts = Options{
		Root: dir, DB: d, Store: w.store, Runtime: w.runtime, Network: w.network, Events: &event.Bus{},
		Log: slog.New(slog.DiscardHandler), Version: "1", CPUs: 2, BootTime: time.Now().Add(-time.Hour),
	}
	w.reopen()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.Stop(ctx, 0); err != nil {
			t.Error(err)
		}
		if err := w.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return w
}

// reopen is a new life of the agent on the same data.
func (w *world) reopen() {
	w.t.Helper()
	e, err := Open(context.Background(), w.opts)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Engine = e
}

// clean fails the test if anything of a container is left outside of its
// record.
func (w *world) clean() {
	w.t.Helper()
	w.runtime.mu.Lock()
	defer w.runtime.mu.Unlock()
	w.network.mu.Lock()
	defer w.network.mu.Unlock()
	if len(w.runtime.live)+len(w.network.attached) != 0 {
		w.t.Errorf("left behind: processes %v, endpoints %v", w.runtime.live, w.network.attached)
	}
}

// events returns the actions since the subscription.
func actions(s *event.Subscription) (list []string) {
	all, _ := s.Take()
	for _, m := range all {
		list = append(list, string(m.Action))
	}
	return slices.Compact(list)
}

var _ reference.Named // the Store interface names it
