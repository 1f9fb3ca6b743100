package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"dhow/host/client"
	"dhow/host/config"
	"dhow/host/image"
	"dhow/host/vm"
	"dhow/internal/errdefs"
)

const (
	// defaultGrace is how long containers get between SIGTERM and SIGKILL when
	// the machine stops: docker's own figure.
	defaultGrace = 10 * time.Second
	// stopSlack is how long the guest gets beyond the grace to power off.
	stopSlack = 40 * time.Second
	// agentTimeout bounds a docker connection's waiting for an agent that is
	// being restarted.
	agentTimeout = 60 * time.Second
	// statsTimeout bounds the guest's answer to a status request.
	statsTimeout = 2 * time.Second
)

// machineConfig is what a machine needs of its surroundings.
type machineConfig struct {
	Layout      config.Layout
	Host        config.Host
	Version     string
	Find        func(override string) (*image.Image, error)
	New         func(driver string, c vm.Config) (vm.Machine, error)
	Driver      string // the host's default
	BootTimeout time.Duration
	HangTimeout time.Duration // the first boot's, if it is emulated
	Log         *slog.Logger
}

// machine is the one machine of a dhowd, through all its boots. Its methods are
// safe for concurrent use.
type machine struct {
	config machineConfig
	ctx    context.Context // ends with close's end; bounds every boot
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	state   client.State
	err     error      // why it is failed, or why it ended by itself
	op      *operation // in the states starting and stopping
	life    *life      // in the states running and stopping
	closing bool       // no more starts
	clients int        // docker connections in use
	idle    *time.Timer
}

func newMachine(c machineConfig) *machine {
	m := &machine{config: c, state: client.Stopped}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// start boots the machine, or joins the start in progress, and returns when the
// agent has answered. ctx bounds the waiting only.
func (m *machine) start(ctx context.Context, progress func(string)) error {
	for {
		m.mu.Lock()
		switch m.state {
		case client.Running:
			m.mu.Unlock()
			return nil
		case client.Starting:
			op := m.op
			m.mu.Unlock()
			return op.follow(ctx, progress)
		case client.Stopping:
			op := m.op
			m.mu.Unlock()
			if op.follow(ctx, progress); ctx.Err() != nil {
				return ctx.Err()
			}
		case client.Stopped, client.Failed:
			if m.closing {
				m.mu.Unlock()
				return errdefs.New(errdefs.Unavailable, "dhowd is ending")
			}
			if m.life != nil { // it could not be killed: its disk is not ours
				m.mu.Unlock()
				return errdefs.New(errdefs.Unavailable, "the machine's hypervisor has not ended yet; see %s", m.config.Layout.LogFile())
			}
			op := m.begin(client.Starting, m.boot)
			m.mu.Unlock()
			return op.follow(ctx, progress)
		}
	}
}

// begin moves to a state in which an operation is in progress, and starts that.
// m.mu is held.
func (m *machine) begin(to client.State, do func(context.Context, *operation) error) *operation {
	m.transition(to)
	ctx, cancel := context.WithCancel(m.ctx)
	op := newOperation(cancel)
	m.op = op
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		defer cancel()
		op.end(do(ctx, op))
	}()
	return op
}

// boot is the operation of a start.
func (m *machine) boot(ctx context.Context, op *operation) error {
	l, err := bootLife(ctx, m.config, op.step)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.op = nil
	if err != nil {
		if ctx.Err() != nil { // by stop or close: as asked
			err = errdefs.Wrap(errdefs.Canceled, err, "the start of the machine was canceled")
			m.err = nil
			m.transition(client.Stopped)
			return err
		}
		m.config.Log.Error("the machine did not start", "step", op.last(), "error", err)
		err = errdefs.Wrap(errdefs.ClassOf(err), err, "the machine did not start (%s): %s", op.last(), errdefs.Sentence(err))
		m.err = err
		m.transition(client.Failed)
		return err
	}
	m.life, m.err = l, nil
	m.transition(client.Running)
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		m.supervise(l)
	}()
	m.armIdle()
	return nil
}

// supervise waits for the end of a life and, if nobody asked for it, takes the
// machine's state there.
func (m *machine) supervise(l *life) {
	err := l.wait()
	defer close(l.gone)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life == l {
		m.life = nil
	}
	m.disarmIdle()
	if m.state != client.Running {
		return // the stop in progress says how it ended
	}
	if err == nil {
		m.err = errdefs.New(errdefs.Unavailable, "the guest powered the machine off")
		m.transition(client.Stopped)
		return
	}
	m.config.Log.Error("the machine ended by itself", "error", err)
	m.err = err
	m.transition(client.Failed)
}

// stopOptions say how to stop.
type stopOptions struct {
	force bool
	grace time.Duration // of containers; 0: defaultGrace
}

// stop stops the machine, or joins the stop in progress, and returns when it
// has ended. A start in progress is given up. ctx bounds the waiting only.
func (m *machine) stop(ctx context.Context, o stopOptions, progress func(string)) error {
	for {
		m.mu.Lock()
		op := m.op
		switch m.state {
		case client.Stopped, client.Failed:
			m.mu.Unlock()
			return nil
		case client.Starting:
			m.mu.Unlock()
			op.cancel()
			if op.follow(ctx, nil); ctx.Err() != nil {
				return ctx.Err()
			}
		case client.Running:
			l := m.life
			op = m.begin(client.Stopping, func(ctx context.Context, op *operation) error { return m.end(ctx, op, l, o) })
			op.force = func() { _ = l.machine.Kill() } // the stop in progress reports its error
			m.mu.Unlock()
			return op.follow(ctx, progress)
		case client.Stopping:
			m.mu.Unlock()
			if o.force {
				op.force()
			}
			return op.follow(ctx, progress)
		}
	}
}

// end is the operation of a stop.
func (m *machine) end(ctx context.Context, op *operation, l *life, o stopOptions) error {
	grace := o.grace
	if grace <= 0 {
		grace = defaultGrace
	}
	var err error
	if o.force {
		op.step("powering the machine off")
		err = l.machine.Kill()
	} else {
		op.step("stopping containers")
		ctx, cancel := context.WithTimeout(ctx, grace+stopSlack)
		err = vm.Stop(ctx, l.machine, func(ctx context.Context) error {
			err := l.link.Shutdown(ctx, grace)
			op.step("powering the machine off")
			return err
		})
		cancel()
	}
	ended := false
	select {
	case <-l.machine.Done():
		_ = l.wait() // its goroutines and files; what ended it is known
		ended = true
	default: // the hypervisor did not let go, as err says
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.op = nil
	if ended {
		m.life = nil
	}
	if err == nil {
		m.err = nil
		m.transition(client.Stopped)
		return nil
	}
	m.config.Log.Error("the machine did not stop as it should", "error", err)
	m.err = err
	m.transition(client.Failed)
	return err
}

// close stops the machine for good and waits for everything that it started.
func (m *machine) close(ctx context.Context, o stopOptions, progress func(string)) error {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	err := m.stop(ctx, o, progress)
	m.mu.Lock()
	m.disarmIdle()
	stuck := m.life != nil
	m.mu.Unlock()
	m.cancel()
	if !stuck { // else the hypervisor did not let go, as err says
		m.wg.Wait()
	}
	return err
}

// endNotice is how long a failed dial waits for the news that the machine has
// ended, which explains it.
const endNotice = time.Second

// dial returns a connection to the agent's Docker API and boots the machine
// for it where it is off, also where it has just ended by itself.
func (m *machine) dial(ctx context.Context) (net.Conn, error) {
	for again := false; ; again = true {
		if err := m.start(ctx, nil); err != nil {
			return nil, err
		}
		m.mu.Lock()
		l := m.life
		m.mu.Unlock()
		if l == nil {
			continue // it has ended meanwhile, and its state says so
		}
		c, err := l.dial(ctx)
		if err == nil || ctx.Err() != nil || again {
			return c, err
		}
		select {
		case <-l.machine.Done():
			<-l.gone
		case <-time.After(endNotice):
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// setClients is told how many docker connections are in use.
func (m *machine) setClients(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clients = n
	m.disarmIdle()
	m.armIdle()
}

// armIdle starts the time after which an unused machine stops. m.mu is held.
func (m *machine) armIdle() {
	if m.state != client.Running || m.clients > 0 || m.closing || m.life.settings.IdleMinutes == 0 {
		return
	}
	l := m.life
	m.idle = time.AfterFunc(time.Duration(l.settings.IdleMinutes)*idleUnit, func() { m.stopIdle(l) })
}

// disarmIdle stops it. m.mu is held.
func (m *machine) disarmIdle() {
	if m.idle != nil {
		m.idle.Stop()
		m.idle = nil
	}
}

// idleUnit is a minute, but in tests.
var idleUnit = time.Minute

// stopIdle stops the machine if it is still unused. It runs on the timer's
// goroutine.
func (m *machine) stopIdle(l *life) {
	m.mu.Lock()
	if m.state != client.Running || m.life != l || m.clients > 0 || m.closing {
		m.mu.Unlock()
		return
	}
	m.wg.Add(1) // with m.mu held and not closing: close waits later
	m.mu.Unlock()
	defer m.wg.Done()
	ctx, cancel := context.WithTimeout(m.ctx, statsTimeout)
	defer cancel()
	stats, err := l.link.Stats(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != client.Running || m.life != l || m.clients > 0 {
		return
	}
	if err != nil || stats.RunningContainers > 0 {
		m.armIdle()
		return
	}
	m.config.Log.Info("nobody uses the machine", "minutes", l.settings.IdleMinutes)
	op := m.begin(client.Stopping, func(ctx context.Context, op *operation) error { return m.end(ctx, op, l, stopOptions{}) })
	op.force = func() { _ = l.machine.Kill() }
}

// status describes the machine. It asks the guest for its figures.
func (m *machine) status(ctx context.Context) client.Status {
	m.mu.Lock()
	s := client.Status{Machine: m.config.Layout.Machine, State: m.state, Driver: m.config.Driver, Clients: m.clients}
	if m.err != nil {
		s.Error = errdefs.Sentence(m.err)
	}
	if m.op != nil {
		s.Step = m.op.last()
	}
	l := m.life
	m.mu.Unlock()

	var settings config.Settings
	if l != nil {
		settings = l.settings
		l.describe(&s)
		if s.State == client.Running {
			ctx, cancel := context.WithTimeout(ctx, statsTimeout)
			defer cancel()
			if stats, err := l.link.Stats(ctx); err == nil {
				s.Guest = &stats
			}
		}
	} else if set, err := config.Load(m.config.Layout, m.config.Host); err == nil {
		settings = set
	} else if s.Error == "" {
		s.Error = err.Error()
	}
	s.CPUs, s.Memory, s.DiskSize = settings.CPUs, settings.Memory, settings.DiskSize
	if settings.Driver != "" {
		s.Driver = settings.Driver
	}
	if st, err := os.Stat(m.config.Layout.DataDisk()); err == nil {
		s.DiskSize, s.DiskUsed = st.Size(), config.DiskUsed(m.config.Layout.DataDisk())
	}
	return s
}
