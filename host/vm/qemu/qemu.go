package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"dhow/host/vm"
	"dhow/host/vm/vhost/vsockdev"
	"dhow/internal/errdefs"
	"dhow/internal/steps"
)

// guestCID is the guest's vsock address. Every machine has a device of its
// own, so all can have the same.
const guestCID = 3

const (
	// startTimeout bounds QEMU's own start, up to the guest's first instruction.
	startTimeout = 60 * time.Second
	// quitTimeout is what QEMU gets to end after the guest has.
	quitTimeout = 10 * time.Second
	// fullRetry is how long a guest stands still whose write found no room.
	fullRetry = 3 * time.Second
	// killTimeout is what the kernel gets to end QEMU.
	killTimeout = 10 * time.Second
)

// Options choose a QEMU. The zero value is right for the host's own
// architecture.
type Options struct {
	Arch      string // of the guest, Go's name; "" is the host's
	Accel     string // "kvm" or "tcg"; "" is the best that works
	Binary    string // name or path of QEMU; "" looks for the usual names
	NoSandbox bool   // QEMU was built without seccomp
}

// device is the part of *vsockdev.Device that a machine needs.
type device interface {
	Serve(*net.UnixListener) error
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Listen(port uint32) (net.Listener, error)
	Close() error
}

// Machine is a vm.Machine that QEMU runs.
type Machine struct {
	cfg    vm.Config
	opts   Options
	log    *slog.Logger
	life   *vm.Life
	vsock  device
	probe  probe
	start  context.Context // ends when Kill is called
	cancel context.CancelFunc

	mu      sync.Mutex
	accel   acceleration
	killed  bool        // by us: the end is no error
	process *process    // nil unless QEMU runs
	reason  string      // of QEMU's SHUTDOWN event, "" before it
	quit    *time.Timer // kills a QEMU that does not quit
	retry   *time.Timer // lets the guest go on after the disk was full

	alter func([]steps.Step) []steps.Step // of tests

	// What Start has made; used by its steps and by the end of the machine,
	// which come after each other.
	plan     plan
	binary   string
	console  *vm.Console
	monitor  *qmp
	released []steps.Step // in the order of their making
}

var (
	_ vm.Machine     = (*Machine)(nil)
	_ vm.Accelerated = (*Machine)(nil)
)

// New returns a machine, not started. It does no I/O.
func New(cfg vm.Config, o Options) *Machine {
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler) // Start refuses the Config
	}
	m := &Machine{cfg: cfg, opts: o, log: log, life: vm.NewLife(), vsock: vsockdev.New(log, guestCID), probe: hostProbe()}
	m.start, m.cancel = context.WithCancel(context.Background())
	return m
}

// Start is described at vm.Machine.
func (m *Machine) Start(ctx context.Context) error {
	if err := m.life.To(vm.Starting); err != nil {
		return err
	}
	// The start ends with ctx, with Kill, or when it takes too long.
	sctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	defer context.AfterFunc(m.start, cancel)()

	m.released = m.steps()
	if m.alter != nil {
		m.released = m.alter(m.released)
	}
	err := steps.Run(sctx, m.released)
	if err == nil {
		go m.run()
		return nil
	}
	err = m.startError(ctx, err)
	_ = m.vsock.Close()
	m.cancel()
	m.life.End(err)
	return err
}

// startError gives err its class: a start that was given up is Canceled (or
// Unavailable, for a deadline), whatever the step that noticed it said.
func (m *Machine) startError(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		class := errdefs.ClassOf(ctx.Err())
		return errdefs.Wrap(class, errors.Join(ctx.Err(), err), "the start of the machine was given up")
	case m.start.Err() != nil:
		return errdefs.Wrap(errdefs.Canceled, errors.Join(context.Canceled, err), "the machine was killed while it started")
	case errors.Is(err, context.DeadlineExceeded):
		return errdefs.Wrap(errdefs.Unavailable, err, "QEMU has not started the machine within %s", startTimeout)
	}
	return err
}

// run waits for QEMU's end and then releases everything, last made first.
func (m *Machine) run() {
	<-m.process.exited
	_ = m.life.To(vm.Stopping)
	// The monitor's reader has to come to its end, to know all events.
	<-m.monitor.done
	exit := m.exit()
	if err := steps.Undo(context.Background(), m.released); err != nil {
		m.log.Error("the machine's end left something behind", "error", err)
	}
	m.cancel()
	m.life.End(exit)
}

// exit judges the end of QEMU.
func (m *Machine) exit() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range []*time.Timer{m.quit, m.retry} {
		if t != nil {
			t.Stop()
		}
	}
	switch {
	case m.killed || m.reason == "guest-shutdown":
		return nil
	case m.reason == "guest-reset" || m.reason == "guest-panic":
		return m.console.GuestReset()
	}
	return m.exitError("QEMU ended")
}

// Kill is described at vm.Machine.
func (m *Machine) Kill() error {
	m.mu.Lock()
	m.killed = true
	if m.process != nil {
		_ = m.process.kill()
	}
	m.mu.Unlock()
	m.cancel()
	if m.life.Abandon() {
		_ = m.vsock.Close()
		m.life.End(nil)
	}
	_ = m.life.To(vm.Stopping)
	select {
	case <-m.life.Done():
		return nil
	case <-time.After(killTimeout + steps.UndoTimeout):
		return errdefs.New(errdefs.Unavailable, "QEMU does not end although it was killed")
	}
}

// Done is described at vm.Machine.
func (m *Machine) Done() <-chan struct{} { return m.life.Done() }

// Err is described at vm.Machine.
func (m *Machine) Err() error { return m.life.Err() }

// State is described at vm.Machine.
func (m *Machine) State() vm.State { return m.life.State() }

// Acceleration is described at vm.Accelerated.
func (m *Machine) Acceleration() (name, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.accel.name, m.accel.why
}

// Dial is described at vm.Machine.
func (m *Machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if m.life.State() != vm.Running {
		return nil, vm.ErrNotRunning
	}
	c, err := m.vsock.Dial(ctx, port)
	if err != nil && errors.Is(err, net.ErrClosed) {
		return nil, vm.ErrNotRunning // it ended meanwhile
	}
	return c, err
}

// Listen is described at vm.Machine.
func (m *Machine) Listen(port uint32) (net.Listener, error) {
	l, err := m.vsock.Listen(port)
	if err != nil && errors.Is(err, net.ErrClosed) {
		return nil, vm.ErrNotRunning
	}
	return l, err
}

// event takes what QEMU tells, on the monitor's goroutine.
func (m *Machine) event(e qmpEvent) {
	m.log.Debug("qemu event", "event", e.Name, "data", string(e.Data))
	switch e.Name {
	case "SHUTDOWN":
		m.shutdown(shutdownReason(e.Data))
	case "BLOCK_IO_ERROR":
		m.blockError(e.Data)
	}
}

// blockError takes an error of a disk. When the host's disk is full QEMU stops
// the guest's CPUs before the guest sees an error; they go on, and the write is
// done again, when there may be room.
func (m *Machine) blockError(data json.RawMessage) {
	var d struct {
		Node   string `json:"node-name"`
		Action string
		Full   bool `json:"nospace"`
		Reason string
	}
	if err := json.Unmarshal(data, &d); err != nil || d.Action != "stop" {
		m.log.Error("a disk of the machine fails", "event", string(data))
		return
	}
	m.log.Error("the machine stands still: this computer's disk is full", "disk", d.Node, "error", d.Reason)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.retry == nil {
		m.retry = time.AfterFunc(fullRetry, func() { _ = m.monitor.send("cont") })
		return
	}
	m.retry.Reset(fullRetry)
}

// shutdown takes the guest's end. QEMU waits to be told to quit, with the
// guest's CPUs stopped.
func (m *Machine) shutdown(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reason != "" {
		return // our own quit
	}
	m.reason = reason
	_ = m.life.To(vm.Stopping)
	p := m.process
	if p == nil {
		return
	}
	if err := m.monitor.send("quit"); err != nil {
		_ = p.kill()
		return
	}
	m.quit = time.AfterFunc(quitTimeout, func() {
		m.log.Warn("QEMU does not quit; killing it")
		_ = p.kill()
	})
}

// mapError of a step that waits for QEMU: its death is a better error than
// the silence of its monitor.
func (m *Machine) mapError(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	if !errors.Is(err, errQMPEnded) && !isGone(m.process) {
		return err
	}
	// A closed monitor is QEMU's end, a moment before we see it.
	select {
	case <-m.process.exited:
	case <-time.After(quitTimeout):
		return err
	}
	exit := m.exitError("QEMU ended before it ran the guest")
	return explain(ctx, m.binary, errdefs.Wrap(errdefs.Internal, exit, "QEMU could not start the machine%s", lastLine(exit.Stderr)))
}

// lastLine returns ": " and the last line of what QEMU said, if anything.
func lastLine(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s[strings.LastIndexByte(s, '\n')+1:]
}

// exitError describes the end of a process that is reaped.
func (m *Machine) exitError(reason string) *vm.ExitError {
	return &vm.ExitError{Reason: reason, Status: m.process.status, Stderr: m.process.stderr.String(), Console: m.console.Tail(vm.ConsoleLines)}
}

func isGone(p *process) bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// ignoreNotExist is for files that may have been removed earlier.
func ignoreNotExist(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
