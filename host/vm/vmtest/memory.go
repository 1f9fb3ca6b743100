package vmtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"dhow/host/vm"
	"dhow/internal/errdefs"
	"dhow/proto/control"
)

// GuestCID is the vsock address of the in-memory machine.
const GuestCID = 3

// backlog is how many connections a listener holds before Dial is refused.
const backlog = 128

// Guest is what runs in an in-memory machine. It must return soon after ctx
// ends; if it returns before, the machine powers off, or crashes when it
// returns an error, as a kernel does whose init has exited.
type Guest func(ctx context.Context, g *GuestNet) error

// Memory is a Machine whose guest is a function in this process.
type Memory struct {
	cfg   vm.Config
	guest Guest
	life  *vm.Life
	net   *network

	mu     sync.Mutex
	cancel context.CancelFunc // ends the guest; nil before Start
	killed bool
	exit   error // what Err will say, decided by whoever ended the machine first
	ended  bool
}

// NewMemory returns a machine that runs guest. Of cfg it uses what Validate
// checks, and Dir, for console.log.
func NewMemory(cfg vm.Config, guest Guest) *Memory {
	return &Memory{cfg: cfg, guest: guest, life: vm.NewLife(), net: newNetwork()}
}

// Start is described at vm.Machine.
func (m *Memory) Start(ctx context.Context) error {
	if err := m.life.To(vm.Starting); err != nil {
		return err
	}
	console, err := m.prepare(ctx)
	if err != nil {
		m.net.close()
		m.life.End(err)
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	gctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	if err := m.life.To(vm.Running); err != nil || m.killed {
		cancel()
		_ = console.Close()
		m.net.close()
		err := errdefs.Wrap(errdefs.Canceled, context.Canceled, "the machine was killed while it started")
		m.life.End(err)
		return err
	}
	go m.run(gctx, console)
	return nil
}

func (m *Memory) prepare(ctx context.Context) (*vm.Console, error) {
	if err := ctx.Err(); err != nil {
		return nil, errdefs.Wrap(errdefs.Canceled, err, "the start of the machine was given up")
	}
	if err := m.cfg.Validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	return vm.OpenConsole(filepath.Join(m.cfg.Dir, "console.log"))
}

func (m *Memory) run(ctx context.Context, console *vm.Console) {
	g := &GuestNet{m: m, console: console}
	err := m.guest(ctx, g)
	if err != nil {
		fmt.Fprintf(console, "Kernel panic - not syncing: Attempted to kill init! %v\n", err)
		m.end(console.GuestReset())
	}
	m.end(nil)
	_ = m.life.To(vm.Stopping)
	m.net.close()
	_ = console.Close()
	m.mu.Lock()
	exit := m.exit
	m.mu.Unlock()
	m.life.End(exit)
}

// end lets the guest's function return; the first caller decides on Err.
func (m *Memory) end(exit error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ended {
		m.ended, m.exit = true, exit
	}
	if m.cancel != nil {
		m.cancel()
	}
}

// Kill is described at vm.Machine.
func (m *Memory) Kill() error {
	if m.life.Abandon() {
		m.net.close()
		m.life.End(nil)
	}
	m.mu.Lock()
	m.killed = true
	m.mu.Unlock()
	_ = m.life.To(vm.Stopping)
	m.net.close()
	m.end(nil)
	<-m.life.Done()
	return nil
}

// Done is described at vm.Machine.
func (m *Memory) Done() <-chan struct{} { return m.life.Done() }

// Err is described at vm.Machine.
func (m *Memory) Err() error { return m.life.Err() }

// State is described at vm.Machine.
func (m *Memory) State() vm.State { return m.life.State() }

// Acceleration is described at vm.Accelerated.
func (m *Memory) Acceleration() (name, why string) { return "none", "in memory, for tests" }

// Dial is described at vm.Machine.
func (m *Memory) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if m.life.State() != vm.Running {
		return nil, vm.ErrNotRunning
	}
	return m.net.dial(addr{control.HostCID, 0}, addr{GuestCID, port})
}

// Listen is described at vm.Machine.
func (m *Memory) Listen(port uint32) (net.Listener, error) {
	return m.net.listen(addr{control.HostCID, port})
}

// GuestNet is the machine as its guest sees it.
type GuestNet struct {
	m       *Memory
	console *vm.Console
}

// Dial connects to a port of the host.
func (g *GuestNet) Dial(port uint32) (net.Conn, error) {
	return g.m.net.dial(addr{GuestCID, 0}, addr{control.HostCID, port})
}

// Listen listens on a port of the guest.
func (g *GuestNet) Listen(port uint32) (net.Listener, error) {
	return g.m.net.listen(addr{GuestCID, port})
}

// PowerOff ends the machine in order.
func (g *GuestNet) PowerOff() { g.m.end(nil) }

// Crash ends the machine as a kernel's panic does.
func (g *GuestNet) Crash() {
	fmt.Fprintln(g.console, "Kernel panic - not syncing: sysrq triggered crash")
	g.m.end(g.console.GuestReset())
}

// Console writes to the machine's console.
func (g *GuestNet) Console(p []byte) { _, _ = g.console.Write(p) }

// network joins the two sides' listeners.
type network struct {
	mu        sync.Mutex
	closed    bool
	ephemeral uint32
	listeners map[addr]*listener
	conns     map[*conn]struct{} // the dialing ends
}

func newNetwork() *network {
	return &network{ephemeral: 1 << 30, listeners: map[addr]*listener{}, conns: map[*conn]struct{}{}}
}

func (n *network) dial(from, to addr) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, vm.ErrNotRunning
	}
	refused := &net.OpError{Op: "dial", Net: "vsock", Addr: to, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	l := n.listeners[to]
	if l == nil {
		return nil, refused
	}
	n.ephemeral++
	from.port = n.ephemeral
	var near *conn
	near, far := newPipe(from, to, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.conns, near)
	})
	select {
	case l.queue <- far:
	default:
		return nil, refused
	}
	n.conns[near] = struct{}{}
	return near, nil
}

func (n *network) listen(at addr) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, vm.ErrNotRunning
	}
	if n.listeners[at] != nil {
		return nil, &net.OpError{Op: "listen", Net: "vsock", Addr: at, Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &listener{n: n, at: at, queue: make(chan *conn, backlog), done: make(chan struct{})}
	n.listeners[at] = l
	return l, nil
}

// close resets every connection and ends every listener.
func (n *network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	for c := range n.conns {
		c.reset()
	}
	for _, l := range n.listeners {
		l.end()
	}
	clear(n.listeners)
}

type listener struct {
	n     *network
	at    addr
	queue chan *conn
	once  sync.Once
	done  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
	default:
		select {
		case c := <-l.queue:
			return c, nil
		case <-l.done:
		}
	}
	return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.at, Err: net.ErrClosed}
}

func (l *listener) Addr() net.Addr { return l.at }

// Close frees the port; connections that wait to be accepted are reset.
func (l *listener) Close() error {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	if l.n.listeners[l.at] == l {
		delete(l.n.listeners, l.at)
	}
	l.end()
	return nil
}

// end is called with l.n.mu held, as is every sender to l.queue.
func (l *listener) end() {
	l.once.Do(func() {
		close(l.done)
		for {
			select {
			case c := <-l.queue:
				c.reset()
			default:
				return
			}
		}
	})
}
