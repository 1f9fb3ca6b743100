//go:build linux

package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// clientBuffer is how many bytes a client may be behind before it holds up the
	// process that writes (dockerd's figure). Nothing is dropped: a client that does
	// not read stops the output until it reads or goes away.
	clientBuffer = 1 << 20
	// drainTimeout is how long output may still come after the process ended
	// (from children that left its process group but hold its pipes).
	drainTimeout = 2 * time.Second
)

// stdio joins the streams of one life of a process with its log and its
// clients. It exists before the process, so that a client that attaches first
// sees the first byte, and is closed once.
type stdio struct {
	terminal, openStdin bool

	mu      sync.Mutex
	clients map[*client]struct{}
	stdin   *os.File // the engine's end: a pipe, or the terminal
	sources []*os.File
	noInput bool // the input has ended, maybe before the process began
	ended   bool // finish was called: no byte comes any more

	ready chan struct{} // closed when stdin is set, or by finish
	done  chan struct{} // closed by finish
	pumps sync.WaitGroup
}

func newStdio(terminal, openStdin bool) *stdio {
	return &stdio{
		terminal: terminal, openStdin: openStdin,
		clients: map[*client]struct{}{}, ready: make(chan struct{}), done: make(chan struct{}),
	}
}

// ends are the process's ends of the pipes; all are nil with a terminal.
type ends struct{ stdin, stdout, stderr *os.File }

func (e ends) close() {
	for _, f := range []*os.File{e.stdin, e.stdout, e.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// open makes the pipes and starts to pump the outputs into out and err (the
// log; nil where there is none). The caller closes the returned ends once the
// process holds them. With a terminal, setTerminal does this work.
func (s *stdio) open(out, err *lineWriter) (e ends, _ error) {
	if s.terminal {
		return ends{}, nil
	}
	var mine []*os.File
	fail := func(cause error) (ends, error) {
		e.close()
		for _, f := range mine {
			_ = f.Close()
		}
		return ends{}, cause
	}
	pipe := func(toProcess bool) (mineEnd, theirs *os.File, _ error) {
		var fd [2]int
		if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
			return nil, nil, fmt.Errorf("make a pipe: %w", err)
		}
		my, their := fd[0], fd[1]
		if toProcess {
			my, their = their, my
		}
		// Only the engine's end goes through the poller: a process expects to block.
		if err := unix.SetNonblock(my, true); err != nil {
			_, _ = unix.Close(my), unix.Close(their)
			return nil, nil, err
		}
		m := os.NewFile(uintptr(my), "pipe")
		mine = append(mine, m)
		return m, os.NewFile(uintptr(their), "pipe"), nil
	}
	var stdin, stdout, stderr *os.File
	var cause error
	if s.openStdin {
		if stdin, e.stdin, cause = pipe(true); cause != nil {
			return fail(cause)
		}
	} else if e.stdin, cause = os.Open(os.DevNull); cause != nil {
		return fail(cause)
	}
	if stdout, e.stdout, cause = pipe(false); cause != nil {
		return fail(cause)
	}
	if stderr, e.stderr, cause = pipe(false); cause != nil {
		return fail(cause)
	}
	s.begin(stdin, stdout, stderr, out, err)
	return e, nil
}

// setTerminal hands over the master of the process's terminal, which finish
// closes.
func (s *stdio) setTerminal(master *os.File, out *lineWriter) {
	s.begin(master, master, nil, out, nil)
}

func (s *stdio) begin(stdin, stdout, stderr *os.File, out, err *lineWriter) {
	s.mu.Lock()
	s.stdin = stdin
	if s.noInput && !s.terminal && stdin != nil {
		_ = stdin.Close()
		s.stdin = nil
	}
	s.mu.Unlock()
	close(s.ready)
	s.source(stdout, false, out)
	if stderr != nil {
		s.source(stderr, true, err)
	}
}

func (s *stdio) source(f *os.File, isErr bool, log *lineWriter) {
	s.mu.Lock()
	s.sources = append(s.sources, f)
	s.mu.Unlock()
	s.pumps.Go(func() { s.pump(f, isErr, log) })
}

// pump carries one output to the log and the clients until it ends. The end
// of a terminal shows as EIO.
func (s *stdio) pump(f *os.File, isErr bool, log *lineWriter) {
	buf := make([]byte, 32<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if log != nil {
				log.write(buf[:n])
			}
			s.give(isErr, buf[:n])
		}
		if err != nil {
			break
		}
	}
	if log != nil {
		log.end()
	}
}

// say writes a line to the log and the clients for a process that could not
// write it itself, on its standard error, or on its terminal.
func (s *stdio) say(line string, log *lineWriter) {
	line += "\n"
	if s.terminal {
		line = line[:len(line)-1] + "\r\n"
	}
	if log != nil {
		log.write([]byte(line))
		log.end()
	}
	s.give(!s.terminal, []byte(line))
}

func (s *stdio) give(isErr bool, b []byte) {
	s.mu.Lock()
	list := make([]*client, 0, 4)
	for c := range s.clients {
		list = append(list, c)
	}
	s.mu.Unlock()
	if len(list) == 0 {
		return
	}
	b = bytes.Clone(b)
	for _, c := range list {
		c.put(chunk{isErr, b})
	}
}

// arm adds a client that wants the given outputs. They are kept for it from
// now on, until begin says where they go, or kill that nobody wants them. After
// the life's end there is nothing to come.
func (s *stdio) arm(out, err bool) *client {
	c := &client{wantOut: out, wantErr: err, done: make(chan struct{}), from: s}
	c.cond.L = &c.mu
	s.mu.Lock()
	if s.ended {
		c.last = true
	} else {
		s.clients[c] = struct{}{}
	}
	s.mu.Unlock()
	return c
}

// write passes a client's input on, once ready is closed. The error is
// io.ErrClosedPipe where the process does not read, or is gone.
func (s *stdio) write(b []byte) (int, error) {
	s.mu.Lock()
	f := s.stdin
	s.mu.Unlock()
	if f == nil {
		return 0, io.ErrClosedPipe
	}
	n, err := f.Write(b)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, os.ErrClosed) || errors.Is(err, unix.EIO) {
		err = io.ErrClosedPipe
	}
	return n, err
}

// closeStdin ends the process's input. A terminal has no end of input.
func (s *stdio) closeStdin() {
	if s.terminal {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noInput = true
	if s.stdin != nil {
		_ = s.stdin.Close()
		s.stdin = nil
	}
}

// finish ends the life: it waits for the outputs' end, at most timeout, closes
// everything, and tells the clients, who still get what they have not read.
func (s *stdio) finish(timeout time.Duration) {
	drained := make(chan struct{})
	go func() { s.pumps.Wait(); close(drained) }()
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-drained:
	case <-t.C:
		s.mu.Lock()
		for _, f := range s.sources {
			_ = f.SetReadDeadline(time.Now())
		}
		for c := range s.clients {
			c.release()
		}
		s.mu.Unlock()
		<-drained
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	for _, f := range s.sources {
		_ = f.Close()
	}
	if s.stdin != nil {
		_ = s.stdin.Close()
		s.stdin = nil
	}
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
	close(s.done)
	for c := range s.clients {
		c.end()
	}
	clear(s.clients)
}

type chunk struct {
	err  bool
	data []byte
}

// client is one reader of a process's output: a bounded queue and the
// goroutine that empties it. done is closed when everything was delivered after
// the end, or the client died.
type client struct {
	from             *stdio
	wantOut, wantErr bool
	out, err         io.Writer // set by begin
	done             chan struct{}

	mu    sync.Mutex
	cond  sync.Cond
	queue []chunk
	size  int
	last  bool // nothing comes after the queue
	dead  bool // nothing can be delivered
	free  bool // the bound is lifted
}

func (c *client) put(k chunk) {
	if k.err && !c.wantErr || !k.err && !c.wantOut {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.size >= clientBuffer && !c.dead && !c.free {
		c.cond.Wait()
	}
	if c.dead || c.last {
		return
	}
	c.queue = append(c.queue, k)
	c.size += len(k.data)
	c.cond.Broadcast()
}

// begin delivers what is queued and what comes. It is called once.
func (c *client) begin(out, err io.Writer) {
	c.out, c.err = out, err
	go c.run()
}

func (c *client) run() {
	defer close(c.done)
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.last && !c.dead {
			c.cond.Wait()
		}
		if c.dead || len(c.queue) == 0 {
			c.mu.Unlock()
			return
		}
		list := c.queue
		c.queue = nil
		c.mu.Unlock()
		for _, k := range list {
			w := c.out
			if k.err {
				w = c.err
			}
			if _, err := w.Write(k.data); err != nil {
				c.kill()
				return
			}
			c.mu.Lock()
			c.size -= len(k.data)
			c.cond.Broadcast()
			dead := c.dead
			c.mu.Unlock()
			if dead {
				return
			}
		}
	}
}

// end tells the client that nothing more comes.
func (c *client) end() { c.set(func() { c.last = true }) }

// kill drops what the client did not read and frees the writer that it holds up.
func (c *client) kill() {
	c.set(func() { c.dead, c.queue = true, nil })
	c.from.mu.Lock()
	delete(c.from.clients, c)
	c.from.mu.Unlock()
}

// release lets the writer go on whatever the client does.
func (c *client) release() { c.set(func() { c.free = true }) }

func (c *client) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	c.cond.Broadcast()
}
