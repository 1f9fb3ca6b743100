package vsockdev

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"dhow/host/vm/vhost"

	"github.com/mdlayher/vsock"
)

const (
	// fullWindow is what a connection lets the guest send ahead of its
	// reader, in bytes. As long as windowBudget is promised in all, further
	// connections get smallWindow: the most that a guest can make this
	// process hold is windowBudget + maxConns×smallWindow.
	fullWindow   = 256 << 10
	smallWindow  = 16 << 10
	windowBudget = 256 << 20

	// maxConns bounds the connections of a device, those included that are
	// closed here and not yet there.
	maxConns = 20000
	// maxBacklog bounds the connections of a Listener that nobody accepted.
	maxBacklog = 128

	// closeTimeout is how long a closed connection waits for the guest to
	// close its end too; Linux waits as long for us.
	closeTimeout = 8 * time.Second
	// dialTimeout bounds a Dial whose context does not.
	dialTimeout = 2 * time.Minute

	rxQueue = 0 // packets to the guest
	txQueue = 1 // packets from it

	// firstPort is the first port that Dial and Listen(0) choose.
	firstPort = 49152
	anyPort   = 0xffffffff
)

// Device is one virtio-vsock device: the host's end of all connections with
// one guest. Make it with New and run it with Serve.
type Device struct {
	log      *slog.Logger
	guestCID uint64
	config   [8]byte

	// chain belongs to the goroutine of the tx queue.
	chain vhost.Chain

	mu        sync.Mutex
	closed    bool
	serving   sync.WaitGroup
	socket    *net.UnixListener
	session   *net.UnixConn
	conns     map[key]*Conn
	listeners map[uint32]*Listener
	nextPort  uint32
	promised  int  // sum of the windows of conns
	warned    bool // of packets that were dropped, in this session

	queues [2]*vhost.Queue // nil while not live
	seen   [2]bool         // was live in this session
	bases  [2]uint16       // where a queue stood when it stopped

	out      outbox
	outChain vhost.Chain
}

// key names a connection.
type key struct{ host, guest uint32 } // ports

// New returns a device whose guest has the context ID guestCID (3 or more). It
// does nothing until Serve; Listen may come first. log gets what the guest does
// wrong.
func New(log *slog.Logger, guestCID uint64) *Device {
	d := &Device{
		log:       log,
		guestCID:  guestCID,
		conns:     make(map[key]*Conn),
		listeners: make(map[uint32]*Listener),
		nextPort:  firstPort,
	}
	binary.LittleEndian.PutUint64(d.config[:], guestCID)
	return d
}

// Serve accepts QEMU's connections on l, one at a time, until Close, and then
// returns nil. When QEMU goes, every connection of the guest is reset, and
// Serve waits for the next QEMU. It closes l. Where there is no vhost-user, it
// returns vhost.ErrUnsupported.
func (d *Device) Serve(l *net.UnixListener) error {
	defer l.Close()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return nil
	}
	if d.socket != nil {
		d.mu.Unlock()
		return errors.New("vsockdev: Serve is running already")
	}
	d.socket = l
	d.serving.Add(1)
	d.mu.Unlock()
	defer d.serving.Done()
	for {
		conn, err := l.AcceptUnix()
		d.mu.Lock()
		if err != nil || d.closed {
			if conn != nil {
				conn.Close()
			}
			if d.closed {
				err = nil
			}
			d.socket = nil
			d.mu.Unlock()
			return err
		}
		d.session = conn
		d.mu.Unlock()

		err = vhost.Serve(conn, handler{d}, d.log)

		d.mu.Lock()
		d.session = nil
		d.seen = [2]bool{}
		d.warned = false
		d.resetAll()
		if errors.Is(err, vhost.ErrUnsupported) {
			d.socket = nil
			d.mu.Unlock()
			return err
		}
		d.mu.Unlock()
		if err != nil {
			d.log.Error("vsock: the connection of QEMU failed", "error", err)
		}
	}
}

// Close ends the device: connections are reset, listeners end, Serve returns.
// No goroutine of the device remains. It always returns nil.
func (d *Device) Close() error {
	d.mu.Lock()
	d.closed = true
	if d.socket != nil {
		d.socket.Close()
	}
	if d.session != nil {
		d.session.Close()
	}
	for _, l := range d.listeners {
		l.end()
	}
	d.resetAll()
	d.mu.Unlock()
	d.serving.Wait()
	return nil
}

// Dial connects to port in the guest. The error, a *net.OpError, wraps
// ECONNREFUSED if nobody listens there or no guest with a driver runs,
// ECONNRESET if the guest goes while we wait, ETIMEDOUT if it does not answer
// for two minutes (or is paused for as long), ctx's error if ctx ends first,
// net.ErrClosed after Close. The connection is a *Conn.
func (d *Device) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	c, err := d.dial(ctx, port)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: d.guestAddr(port), Err: err}
	}
	return c, nil
}

func (d *Device) dial(ctx context.Context, port uint32) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	c, err := d.connect(port)
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	timeout := time.NewTimer(dialTimeout)
	defer timeout.Stop()
	select {
	case <-c.dialed:
	case <-ctx.Done():
		err = ctx.Err()
	case <-timeout.C:
		err = syscall.ETIMEDOUT
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.abandon(c, err)
		return nil, err
	}
	if c.state == gone && !c.answered {
		return nil, c.err
	}
	return c, nil
}

// connect makes a connection and queues its request.
func (d *Device) connect(port uint32) (*Conn, error) {
	switch {
	case d.closed:
		return nil, net.ErrClosed
	case !d.seen[rxQueue] || !d.seen[txQueue]:
		return nil, syscall.ECONNREFUSED
	case len(d.conns) >= maxConns:
		return nil, syscall.ENOBUFS
	}
	k := key{guest: port}
	for {
		k.host = d.choosePort()
		if _, used := d.conns[k]; !used {
			break
		}
	}
	c := d.newConn(k, connecting)
	c.dialed = make(chan struct{})
	d.control(c, ctlRequest)
	d.pump()
	return c, nil
}

// choosePort returns the next port that no Listener has.
func (d *Device) choosePort() uint32 {
	for {
		p := d.nextPort
		if d.nextPort++; d.nextPort == anyPort {
			d.nextPort = firstPort
		}
		if d.listeners[p] == nil {
			return p
		}
	}
}

// Listen waits for connections of the guest to port; 0 chooses one. It can be
// called at any time, and outlives the guest's reboots. The error wraps
// EADDRINUSE if the port is taken, net.ErrClosed after Close.
func (d *Device) Listen(port uint32) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	if port == 0 || port == anyPort {
		port = d.choosePort()
	}
	if d.closed {
		err = net.ErrClosed
	} else if d.listeners[port] != nil {
		err = syscall.EADDRINUSE
	}
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: hostAddr(port), Err: err}
	}
	l := &Listener{
		d: d, addr: hostAddr(port),
		conns: make(chan *Conn, maxBacklog), done: make(chan struct{}),
	}
	d.listeners[port] = l
	return l, nil
}

func hostAddr(port uint32) *vsock.Addr { return &vsock.Addr{ContextID: vsock.Host, Port: port} }

func (d *Device) guestAddr(port uint32) *vsock.Addr {
	return &vsock.Addr{ContextID: uint32(d.guestCID), Port: port}
}

// handler is the Device as vhost sees it.
type handler struct{ d *Device }

func (h handler) Features() uint64 { return 0 }
func (h handler) Queues() int      { return 2 } // QEMU keeps the event queue
func (h handler) Config() []byte   { return h.d.config[:] }

// Start brings a queue to life. If it does not go on where it stopped, the
// guest has booted anew, and its old connections are gone. (QEMU stops the
// queues in the same way for a pause and for a reset.)
func (h handler) Start(i int, q *vhost.Queue) {
	d := h.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen[i] && q.Base() != d.bases[i] {
		d.resetAll()
	}
	d.queues[i], d.seen[i] = q, true
}

func (h handler) Stop(i int, q *vhost.Queue) {
	d := h.d
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queues[i] = nil
	d.bases[i] = q.Base()
}

func (h handler) Kick(i int, q *vhost.Queue) {
	d := h.d
	if i == txQueue {
		d.receive(q)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	// pump asks for kicks again if it runs out of buffers with packets left.
	q.DisableKicks()
	d.pump()
}

// violated is called when a queue failed: the device is dead until the guest
// resets it. mu is held.
func (d *Device) violated() {
	d.queues = [2]*vhost.Queue{}
	d.seen = [2]bool{}
	d.resetAll()
}

// resetAll ends every connection, as the guest's end of it is gone. Nothing is
// sent. mu is held.
func (d *Device) resetAll() {
	for _, c := range d.conns {
		d.remove(c, syscall.ECONNRESET)
	}
	paused := d.out.paused
	d.out = outbox{}
	if tx := d.queues[txQueue]; paused && tx != nil {
		tx.Poke()
	}
}
