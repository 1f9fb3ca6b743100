package vz

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/Code-Hex/vz/v3"

	"dhow/host/vm"
	"dhow/internal/errdefs"
	"dhow/internal/steps"
)

// stopTimeout is what the framework gets to stop a machine by force.
const stopTimeout = 10 * time.Second

// Machine is a vm.Machine that the Virtualization framework runs.
type Machine struct {
	cfg     vm.Config
	life    *vm.Life
	sockets *sockets
	start   context.Context // ends when Kill is called
	cancel  context.CancelFunc

	mu      sync.Mutex
	killed  bool
	crashed bool // a panic was seen on the console

	machine  *vz.VirtualMachine
	console  *vm.Console
	released []steps.Step
}

var (
	_ vm.Machine     = (*Machine)(nil)
	_ vm.Accelerated = (*Machine)(nil)
)

// New returns a machine, not started. It does no I/O.
func New(cfg vm.Config) *Machine {
	m := &Machine{cfg: cfg, life: vm.NewLife(), sockets: newSockets()}
	m.start, m.cancel = context.WithCancel(context.Background())
	return m
}

// Start is described at vm.Machine.
func (m *Machine) Start(ctx context.Context) error {
	if err := m.life.To(vm.Starting); err != nil {
		return err
	}
	sctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.start, cancel)()
	m.released = m.steps()
	err := steps.Run(sctx, m.released)
	if err == nil {
		go m.run()
		return nil
	}
	switch {
	case ctx.Err() != nil:
		err = errdefs.Wrap(errdefs.ClassOf(ctx.Err()), errors.Join(ctx.Err(), err), "the start of the machine was given up")
	case m.start.Err() != nil:
		err = errdefs.Wrap(errdefs.Canceled, errors.Join(context.Canceled, err), "the machine was killed while it started")
	}
	_ = m.sockets.close()
	m.cancel()
	m.life.End(err)
	return err
}

// steps is the start of a machine, and its undo the end.
func (m *Machine) steps() []steps.Step {
	initrd := filepath.Join(m.cfg.Dir, "initrd")
	var consoleIn, consoleOut, theirNetwork *os.File
	var ourNetwork net.Conn
	var copying sync.WaitGroup
	return []steps.Step{
		{Name: "check the settings", Do: func(context.Context) error {
			if err := m.cfg.Validate(); err != nil {
				return err
			}
			return os.MkdirAll(m.cfg.Dir, 0o700)
		}},
		{
			Name: "open the console's log",
			Do: func(context.Context) (err error) {
				if m.console, err = vm.OpenConsole(filepath.Join(m.cfg.Dir, "console.log")); err != nil {
					return err
				}
				consoleIn, consoleOut, err = m.followConsole(&copying)
				if err != nil {
					return errors.Join(err, m.console.Close())
				}
				return nil
			},
			Undo: func(context.Context) error {
				err := errors.Join(consoleIn.Close(), consoleOut.Close())
				copying.Wait()
				return errors.Join(err, m.console.Close())
			},
		},
		{
			Name: "write the boot file",
			Do: func(context.Context) error {
				if err := os.Remove(initrd); err != nil && !errors.Is(err, os.ErrNotExist) { // of a dhowd that was killed
					return err
				}
				return vm.WriteInitrd(initrd, m.cfg.Initrd, m.cfg.Boot)
			},
			Undo: func(context.Context) error {
				if err := os.Remove(initrd); err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
				return nil
			},
		},
		{
			Name: "connect the network",
			Do: func(ctx context.Context) (err error) {
				if m.cfg.NetSocket == "" {
					return nil
				}
				var d net.Dialer
				network, err := d.DialContext(ctx, "unix", m.cfg.NetSocket)
				if err != nil {
					return err
				}
				if theirNetwork, ourNetwork, err = networkPair(); err != nil {
					return errors.Join(err, network.Close())
				}
				copying.Go(func() {
					if err := bridge(ourNetwork, network); err != nil {
						m.cfg.Log.Error("the machine's network has ended", "error", err)
					}
				})
				return nil
			},
			Undo: func(context.Context) error {
				if ourNetwork == nil {
					return nil
				}
				_ = ourNetwork.Close() // by the bridge already, if it ended first
				return theirNetwork.Close()
			},
		},
		{
			Name: "make the machine",
			Do: func(context.Context) error {
				c, err := m.configure(initrd, consoleIn, consoleOut, theirNetwork)
				if err != nil {
					return err
				}
				if m.machine, err = vz.NewVirtualMachine(c); err != nil {
					return err
				}
				devices := m.machine.SocketDevices()
				if len(devices) != 1 {
					return errdefs.New(errdefs.Internal, "the machine has %d vsock devices", len(devices))
				}
				return m.sockets.attach(devices[0])
			},
			Undo: func(context.Context) error { return m.sockets.close() },
		},
		{
			Name: "run the guest",
			Do: func(ctx context.Context) error {
				if err := m.machine.Start(); err != nil {
					return errdefs.Wrap(errdefs.Unavailable, err, "macOS does not run the machine")
				}
				err := ctx.Err()
				if err == nil {
					err = m.life.To(vm.Running) // refused if it was killed meanwhile
				}
				if err != nil {
					return errors.Join(err, m.machine.Stop())
				}
				return nil
			},
			Undo: func(context.Context) error {
				if !m.machine.CanStop() {
					return nil // it has stopped
				}
				return m.machine.Stop()
			},
		},
		{Name: "remove the boot file", Do: func(context.Context) error { return os.Remove(initrd) }},
	}
}

// followConsole returns what the framework reads the console's input from and
// writes its output to.
func (m *Machine) followConsole(copying *sync.WaitGroup) (in, out *os.File, err error) {
	if in, err = os.Open(os.DevNull); err != nil {
		return nil, nil, err
	}
	r, out, err := os.Pipe()
	if err != nil {
		return nil, nil, errors.Join(err, in.Close())
	}
	copying.Go(func() {
		defer r.Close()
		b := make([]byte, 4096)
		for {
			n, err := r.Read(b)
			_, _ = m.console.Write(b[:n])
			if bytes.IndexByte(b[:n], '\n') >= 0 && m.console.Panic() != "" {
				m.crash()
			}
			if err != nil {
				return
			}
		}
	})
	return in, out, nil
}

// crash ends a machine whose guest's kernel has panicked: the framework starts
// a guest again that resets itself.
func (m *Machine) crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.crashed || m.life.State() != vm.Running {
		return
	}
	m.crashed = true
	go func() { _ = m.machine.Stop() }() // run waits for its effect
}

// run waits for the machine's end and then releases everything.
func (m *Machine) run() {
	var exit error
	for state := range m.machine.StateChangedNotify() {
		if state == vz.VirtualMachineStateError {
			exit = &vm.ExitError{Reason: "macOS reports an error of the machine", Console: m.console.Tail(vm.ConsoleLines)}
			break
		}
		if state == vz.VirtualMachineStateStopped {
			break
		}
	}
	_ = m.life.To(vm.Stopping)
	m.mu.Lock()
	switch {
	case m.killed:
		exit = nil
	case m.crashed:
		exit = m.console.GuestReset()
	}
	m.mu.Unlock()
	if err := steps.Undo(context.Background(), m.released); err != nil {
		m.cfg.Log.Error("the machine's end left something behind", "error", err)
	}
	m.cancel()
	m.life.End(exit)
}

// Kill is described at vm.Machine.
func (m *Machine) Kill() error {
	m.cancel()
	if m.life.Abandon() {
		_ = m.sockets.close()
		m.life.End(nil)
	}
	m.mu.Lock()
	m.killed = true
	running := m.life.State() == vm.Running
	_ = m.life.To(vm.Stopping)
	m.mu.Unlock()
	if running {
		if err := m.machine.Stop(); err != nil {
			m.cfg.Log.Debug("stopping the machine", "error", err) // it has stopped by itself, or Done does not come
		}
	}
	select {
	case <-m.life.Done():
		return nil
	case <-time.After(stopTimeout + steps.UndoTimeout):
		return errdefs.New(errdefs.Unavailable, "macOS does not stop the machine")
	}
}

// Done is described at vm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.life.Done() }

// Err is described at vm.Machine.
func (m *Machine) Err() error { return m.life.Err() }

// State is described at vm.Machine.
func (m *Machine) State() vm.State { return m.life.State() }

// Acceleration is described at vm.Accelerated.
func (m *Machine) Acceleration() (name, why string) { return "vz", "" }

// Dial is described at vm.Machine.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if m.life.State() != vm.Running {
		return nil, vm.ErrNotRunning
	}
	return m.sockets.dial(ctx, port)
}

// Listen is described at vm.Machine.
func (m *Machine) Listen(port uint32) (net.Listener, error) { return m.sockets.listen(port) }
