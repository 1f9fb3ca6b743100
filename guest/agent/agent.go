//go:build linux

package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"time"

	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"dhow/guest/api"
	"dhow/guest/control"
	"dhow/guest/db"
	"dhow/guest/engine"
	"dhow/guest/event"
	"dhow/guest/network"
	"dhow/guest/runtime"
	"dhow/guest/store"
	"dhow/internal/errdefs"
	proto "dhow/proto/control"
)

// Options say where the agent works. Boot is nil on plain Linux: then it
// serves the Docker API on Socket and reaches registries directly.
type Options struct {
	Root   string // of all data
	Run    string // directory for what does not outlive the machine
	Enter  string // path of dhow-enter
	Images string // directory of archives to load at the first start; "" = none
	Socket string // unix socket of the Docker API; "" = vsock
	Bridge bool   // make the bridge network on plain Linux, too

	CgroupRoot   string // mount point of cgroup2; "" = /sys/fs/cgroup
	CgroupParent string // of the containers' cgroups, below it

	Boot      *proto.Boot
	Steps     []proto.Step // of the boot, from init
	DataError string       // why there is no data disk; "" = there is one
	Version   string
	Commit    string // of the sources; "unknown" where the build did not say
	Log       *slog.Logger
	// Ready is called once requests are answered; nil for nobody.
	Ready func()

	vsock transport // nil: the kernel's
}

const (
	// stopGrace is how long containers get to end when the agent is told to.
	stopGrace = 10 * time.Second
	// closeTimeout bounds each step of the agent's own end.
	closeTimeout = 5 * time.Second
	// endTimeout is how long the agent's end takes at most, once it is told: what
	// is asked of the API, then the containers, then what follows their ends. Init
	// gives it more than that.
	endTimeout = closeTimeout + stopGrace + closeTimeout
)

// The API's interfaces, joined with their implementation.
var (
	_ api.Containers = (*engine.Engine)(nil)
	_ api.Execs      = (*engine.Engine)(nil)
	_ api.Images     = (*engine.Engine)(nil)
	_ api.Networks   = (*engine.Engine)(nil)
	_ api.System     = (*engine.Engine)(nil)
)

// Run opens everything, serves until ctx ends, and closes everything in
// reverse order: containers are stopped, their data stays.
func Run(ctx context.Context, o Options) error {
	a := &agent{Options: o, marks: append([]proto.Step(nil), o.Steps...)}
	a.mark("agent")
	err := a.open(ctx)
	if err == nil {
		err = a.serve(ctx)
	}
	return errors.Join(err, a.close())
}

// agent is one life. closers are called last first.
type agent struct {
	Options
	marks   []proto.Step
	closers []func() error

	docker, ctl net.Listener // ctl is nil on plain Linux
	// refused is why there is no engine: what requests that need one are answered
	// with. It is nil where there is one.
	refused error
	engine  *engine.Engine
	preload *preload
	server  *http.Server
}

func (a *agent) onClose(f func() error) { a.closers = append(a.closers, f) }

func (a *agent) close() error { return a.closeTo(0) }

// closeTo closes all but the first n things that were opened.
func (a *agent) closeTo(n int) error {
	var errs []error
	for i := len(a.closers) - 1; i >= n; i-- {
		errs = append(errs, a.closers[i]())
	}
	a.closers = a.closers[:n]
	return errors.Join(errs...)
}

// mark notes a point of the boot.
func (a *agent) mark(name string) {
	a.marks = append(a.marks, proto.Step{Name: name, At: sinceBoot()})
}

// open listens, and opens what it serves. An agent that cannot open its data
// serves all the same: the host waits for its hello, and whoever asks for
// anything is told why there is nothing.
func (a *agent) open(ctx context.Context) error {
	if err := a.listen(); err != nil {
		return err
	}
	switch {
	case a.Boot != nil && a.Boot.Protocol != proto.Protocol:
		// The host ends the boot at the hello. Until then nothing is started for a
		// host that may mean something else by what it said.
		a.refused = errdefs.New(errdefs.Unavailable, "the host speaks protocol %d (dhow %s), this agent %d (dhow %s)",
			a.Boot.Protocol, a.Boot.Version, proto.Protocol, a.Version)
	case a.DataError != "":
		// Nothing is opened or made below the root: what would be written there is
		// not on the data disk.
		a.refused = errdefs.New(errdefs.Unavailable, "the machine has no usable data disk: %s", a.DataError)
	default:
		listeners := len(a.closers)
		err := a.openEngine(ctx)
		if err == nil {
			return nil
		}
		cerr := a.closeTo(listeners)
		if ctx.Err() != nil {
			return errors.Join(err, cerr)
		}
		if cerr != nil {
			a.Log.Error("close what was opened", "err", cerr)
		}
		a.refused = errdefs.Wrap(errdefs.Unavailable, err, "the machine's engine cannot start: %s", errdefs.Sentence(err))
	}
	a.Log.Error("nothing is served but the reason", "err", a.refused)
	return nil
}

// openEngine opens the engine and all that it works with.
func (a *agent) openEngine(ctx context.Context) error {
	for _, d := range []struct {
		path string
		perm fs.FileMode
	}{{a.Root, 0o711}, {a.Options.Run, 0o711}} {
		if err := os.MkdirAll(d.path, d.perm); err != nil {
			return err
		}
	}
	meta, err := db.Open(filepath.Join(a.Root, "meta.db"))
	if err != nil {
		return err
	}
	a.onClose(meta.Close)
	dial, cas, err := a.outside()
	if err != nil {
		return err
	}
	images, err := store.Open(ctx, store.Options{
		Root: filepath.Join(a.Root, "store"), DB: meta, Dial: dial, RootCAs: cas, Log: a.Log.With("part", "store"), Version: a.Version,
	})
	if err != nil {
		return err
	}
	a.onClose(images.Close)
	a.mark("store")
	// What a former life of the agent left running is ended before its records are read.
	if err := endLeftovers(a.runtimeDir(), a.CgroupRoot, a.CgroupParent, a.Log); err != nil {
		return err
	}
	rt, err := runtime.New(runtime.Options{
		StateDir: a.runtimeDir(), CgroupParent: a.CgroupParent, CgroupRoot: a.CgroupRoot, Enter: a.Enter, Log: a.Log.With("part", "runtime"),
	})
	if err != nil {
		return err
	}
	a.onClose(rt.Close)
	a.mark("runtime")
	nets, err := a.network(ctx)
	if err != nil {
		return err
	}
	a.mark("network")
	a.preload = newPreload(images, meta, a.Images, a.Version, a.Log)
	gateway, noGateway, err := a.hostGateway()
	if err != nil {
		return err
	}
	a.engine, err = engine.Open(ctx, engine.Options{
		Root: a.Root, DB: meta, Store: a.preload, Runtime: runtimeAdapter{rt}, Network: nets, Events: &event.Bus{},
		Log: a.Log.With("part", "engine"), Version: a.Version, Commit: a.Commit, APIVersion: api.Version, MinAPIVersion: api.MinVersion,
		CPUs: goruntime.NumCPU(), BootTime: time.Now().Add(-sinceBoot()), HostGateway: gateway, NoHostGateway: noGateway,
	})
	if err != nil {
		return err
	}
	a.onClose(a.closeEngine)
	a.mark("engine")
	return nil
}

// network opens the network. Plain Linux has none unless it is asked for (it
// makes a bridge and firewall rules there): then the modes none and host work.
func (a *agent) network(ctx context.Context) (engine.Network, error) {
	o := network.Options{Log: a.Log.With("part", "network")}
	switch {
	case a.Boot != nil:
		o.Uplink = a.Boot.Network
	case !a.Bridge:
		return nil, nil
	}
	m, err := network.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	a.onClose(m.Close)
	return networkAdapter{m}, nil
}

// hostGateway returns the address of the computer that the machine runs on, or
// that there is none. On plain Linux the host is at each bridge's gateway.
func (a *agent) hostGateway() (addr netip.Addr, none bool, err error) {
	switch {
	case a.Boot == nil:
		return addr, false, nil
	case a.Boot.Network == nil || a.Boot.Network.Host == "":
		return addr, true, nil
	}
	if addr, err = netip.ParseAddr(a.Boot.Network.Host); err != nil {
		err = fmt.Errorf("the host's address in the boot's data: %w", err)
	}
	return addr, false, err
}

func (a *agent) runtimeDir() string { return filepath.Join(a.Run, "runtime") }

// closeEngine stops the containers, and waits for what follows their ends.
func (a *agent) closeEngine() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace+closeTimeout)
	defer cancel()
	return errors.Join(a.engine.Stop(ctx, stopGrace), a.engine.Close(ctx))
}

// serve answers until ctx ends or a listener fails.
func (a *agent) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 3)
	var wait []<-chan struct{}
	run := func(f func() error) {
		done := make(chan struct{})
		wait = append(wait, done)
		go func() {
			defer close(done)
			if err := f(); err != nil {
				failed <- err
			}
		}()
	}
	handler := api.New(a.backends(), api.Options{Log: a.Log.With("part", "api"), Version: a.Version, Refuse: a.refused})
	a.server = api.NewServer(handler, a.Log)
	a.server.BaseContext = func(net.Listener) context.Context { return ctx }
	run(func() error {
		if err := a.server.Serve(a.docker); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the Docker API: %w", err)
		}
		return nil
	})
	a.mark("ready")
	if a.ctl != nil {
		run(func() error { return a.serveControl(ctx) })
		run(func() error { return a.ready(ctx) })
	}
	if a.Ready != nil {
		a.Ready()
	}
	if a.engine != nil {
		run(func() error { a.engine.Resume(ctx); return nil })
		run(func() error { a.preload.run(ctx); return nil })
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	cancel()
	a.stopServing()
	for _, w := range wait {
		<-w
	}
	return err
}

// stopServing ends the listeners and gives requests a moment to end: attached
// clients end when the containers do.
func (a *agent) stopServing() {
	if a.ctl != nil {
		_ = a.ctl.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := a.server.Shutdown(ctx); err != nil {
		_ = a.server.Close()
	}
}

// backends are what the API calls: the engine, or without one no more than what
// tells its version.
func (a *agent) backends() api.Backends {
	if a.engine == nil {
		return api.Backends{System: versionOnly{options: engine.Options{Version: a.Version, Commit: a.Commit, APIVersion: api.Version, MinAPIVersion: api.MinVersion}}}
	}
	return api.Backends{Containers: a.engine, Execs: a.engine, Images: a.engine, Networks: a.engine, System: a.engine}
}

// versionOnly is the System of an agent without an engine. The API calls
// nothing but Version.
type versionOnly struct {
	api.System
	options engine.Options
}

// Version implements api.System.
func (v versionOnly) Version(context.Context) (system.VersionResponse, error) {
	return engine.VersionOf(v.options), nil
}

// outside gives the store its way to registries: through the host, with the
// host's trusted roots beside the image's own, or directly on plain Linux.
func (a *agent) outside() (dial func(context.Context, string, string) (net.Conn, error), cas *x509.CertPool, err error) {
	if a.Boot == nil {
		return new(net.Dialer).DialContext, nil, nil
	}
	if len(a.Boot.RootCAs) > 0 {
		if cas, err = x509.SystemCertPool(); err != nil {
			return nil, nil, fmt.Errorf("read the image's trusted roots: %w", err)
		}
		cas.AppendCertsFromPEM(a.Boot.RootCAs)
	}
	return egress{key: a.Boot.Key}.dial, cas, nil
}

// controlServer is what the host's verbs come to.
func (a *agent) controlServer() *control.Server {
	return &control.Server{
		Version: a.Version,
		Steps:   func() []proto.Step { return a.marks },
		Stats:   a.stats,
		Stop: func(ctx context.Context, grace time.Duration) error {
			if a.engine == nil {
				return nil
			}
			ctx, cancel := context.WithTimeout(ctx, grace+closeTimeout)
			defer cancel()
			if err := a.engine.Stop(ctx, grace); err != nil {
				a.Log.Warn("stop containers", "err", err)
			}
			unix.Sync()
			return nil
		},
		PowerOff: func() {
			if err := powerOff(); err != nil {
				a.Log.Error("ask init to power off", "err", err)
			}
		},
	}
}

func (a *agent) stats(context.Context) (proto.Stats, error) {
	var s proto.Stats
	var err error
	if s.MemoryTotal, s.MemoryAvailable, err = memory(); err != nil {
		return s, err
	}
	if a.DataError != "" {
		return s, nil // what is at Root is not the data disk
	}
	var f unix.Statfs_t
	if err := unix.Statfs(a.Root, &f); err != nil {
		return s, fmt.Errorf("statfs %s: %w", a.Root, err)
	}
	s.DiskTotal = int64(f.Blocks) * f.Bsize
	s.DiskUsed = int64(f.Blocks-f.Bfree) * f.Bsize
	if a.engine != nil {
		s.RunningContainers = a.engine.Running()
	}
	return s, nil
}
