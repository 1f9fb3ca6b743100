package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"dhow/host/config"
	"dhow/host/image"
	"dhow/host/proxy"
	"dhow/host/vm"
	"dhow/internal/errdefs"
)

// bootTimeout is how long a guest gets from its start to its agent's answer. A
// loaded host without hardware virtualization needs a good part of a minute.
const bootTimeout = 3 * time.Minute

// Options of Run.
type Options struct {
	Home    string // "" = $DHOW_HOME or ~/.dhow
	Machine string // "" = the default machine
	Version string // of dhow
	// Stderr gets the log too; nil for the log file alone.
	Stderr io.Writer
	// Ready is called once the sockets accept; nil for nobody.
	Ready func()

	// What follows is for tests; zero values are the real things.
	NewMachine  func(driver string, c vm.Config) (vm.Machine, error)
	FindImage   func(override string) (*image.Image, error)
	BootTimeout time.Duration
	HangTimeout time.Duration
}

// daemon is one running dhowd.
type daemon struct {
	options Options
	layout  config.Layout
	log     *slog.Logger
	machine *machine

	docker, api net.Listener
	lock        io.Closer
	released    sync.Once
	quit        context.CancelFunc // ends Run
}

// Run serves the machine's sockets until ctx ends or a client asks it to quit;
// then it stops the machine in order and returns. The machine is not started
// before somebody asks for it. The error is of class Conflict if another dhowd
// has the machine.
func Run(ctx context.Context, o Options) error {
	layout, err := config.NewLayout(o.Home, o.Machine)
	if err != nil {
		return err
	}
	if err := layout.Make(); err != nil {
		return err
	}
	lock, err := config.Lock(layout.LockFile())
	if err != nil {
		if errdefs.Is(err, errdefs.Conflict) {
			err = errdefs.Wrap(errdefs.Conflict, err, "another dhowd runs the machine %q in %s", layout.Machine, layout.Home)
		}
		return err
	}
	file, err := openLog(layout.LogFile(), maxLog)
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	defer file.Close()
	var out io.Writer = file
	if o.Stderr != nil {
		out = io.MultiWriter(file, o.Stderr)
	}
	d := &daemon{options: o, layout: layout, lock: lock, log: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level(layout)}))}
	defer d.release()
	ctx, d.quit = context.WithCancel(ctx)
	defer d.quit()
	return d.run(ctx)
}

// level is what the machine's settings ask for.
func level(l config.Layout) slog.Level {
	if s, err := config.LoadFile(l); err == nil && s.Debug {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

func (d *daemon) run(ctx context.Context) (err error) {
	d.log.Info("dhowd starts", "version", d.options.Version, "machine", d.layout.Machine, "home", d.layout.Home, "pid", os.Getpid())
	c := machineConfig{
		Layout: d.layout, Host: config.ThisHost(), Version: d.options.Version, Find: d.options.FindImage, New: d.options.NewMachine,
		Driver: defaultDriver, BootTimeout: d.options.BootTimeout, HangTimeout: d.options.HangTimeout, Log: d.log,
	}
	if c.Find == nil {
		c.Find = findImage
	}
	if c.New == nil {
		c.New = newDriver
	}
	if c.BootTimeout == 0 {
		c.BootTimeout = bootTimeout
	}
	if c.HangTimeout == 0 {
		c.HangTimeout = hangTimeout
	}
	d.machine = newMachine(c)
	if d.docker, err = listenDocker(d.layout); err != nil {
		return err
	}
	if d.api, err = listenUnix(d.layout.DaemonSocket()); err != nil {
		return err
	}
	docker := proxy.New(proxy.Config{Dial: d.machine.dial, Clients: d.machine.setClients, Log: d.log})
	api := &http.Server{Handler: d.routes(), ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn), ReadHeaderTimeout: 10 * time.Second}

	served := make(chan error, 2)
	go func() { served <- fmt.Errorf("docker socket: %w", docker.Serve(d.docker)) }()
	go func() { served <- fmt.Errorf("dhowd's socket: %w", api.Serve(d.api)) }()
	if d.options.Ready != nil {
		d.options.Ready()
	}
	left := 2
	select {
	case <-ctx.Done():
	case err = <-served: // a listener that fails is the end of dhowd
		left--
		if ctx.Err() != nil {
			err = nil // it was closed on purpose
		} else {
			d.log.Error("a server ended", "error", err)
		}
	}

	// Last made, first unmade. Clients of the API hear the end of what they
	// wait for; docker clients are cut off by the machine's end.
	d.log.Info("dhowd ends")
	if cerr := d.machine.close(context.Background(), stopOptions{}, nil); cerr != nil {
		d.log.Error("the machine did not stop as it should", "error", cerr)
	}
	d.release()
	_ = docker.Close()
	flush, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if serr := api.Shutdown(flush); serr != nil {
		_ = api.Close()
	}
	for ; left > 0; left-- {
		<-served
	}
	return err
}

// release lets go of the machine's files: another dhowd may have them after.
func (d *daemon) release() {
	d.released.Do(func() {
		for _, l := range []net.Listener{d.docker, d.api} {
			if l != nil {
				_ = l.Close() // removes the socket
			}
		}
		_ = d.lock.Close()
	})
}

// findImage looks for the image that belongs to this program. $DHOW_IMAGE goes
// before the setting.
func findImage(override string) (*image.Image, error) {
	if e := os.Getenv("DHOW_IMAGE"); e != "" {
		override = e
	}
	exe, err := os.Executable()
	if err == nil {
		exe, err = filepath.EvalSymlinks(exe)
	}
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Internal, err, "cannot tell where dhow is installed: set DHOW_IMAGE to the VM image's directory")
	}
	return image.Find(image.Search{Override: override, Executable: exe, Arch: runtime.GOARCH})
}
