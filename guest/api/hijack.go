//go:build linux

package api

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"time"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"
	"golang.org/x/sys/unix"
)

// lingerFor bounds how long a connection whose output has ended is kept open
// for its client to read that output and close.
const lingerFor = 5 * time.Second

// holdFor is how long the first output of a stream waits behind the answer's
// header where the client is docker-py (or what is built on it: compose v1,
// Ansible). It takes the header through a buffered reader and the stream from
// the socket below it, so what comes with the header is lost to it. Other
// engines take longer than this to start an exec.
const holdFor = 20 * time.Millisecond

// losesEarlyOutput reports whether a User-Agent is of such a client.
func losesEarlyOutput(agent string) bool {
	return strings.Contains(agent, "docker-sdk-python/") || strings.Contains(agent, "docker-py/") || strings.Contains(agent, "docker-compose/1")
}

// hijacked is a connection taken over from HTTP for an attach or an exec: its
// two directions end separately. What the client sends is the process's
// input; the client's half-close ends only that. What the process writes goes
// to the client; its end half-closes our side.
type hijacked struct {
	conn     net.Conn
	reading  sync.Mutex
	buffered *bufio.Reader // what net/http had read ahead; nil once it is empty
	gone     chan struct{} // closed when the client has closed altogether
	goneOnce sync.Once
	stop     chan struct{} // closed by close
	hold     time.Time     // when the first output may go; see holdFor
	held     sync.Once
	watch    sync.WaitGroup
	watching sync.Once
}

// hijack takes the connection over and answers the request's header: 101 for a
// client that asked to upgrade, else the bare 200 of before API 1.22. wantStdin
// says whether the caller reads the input; if not, it is read here and dropped,
// so that a client that goes away is noticed.
func (c *call) hijack(contentType string, wantStdin bool) (*hijacked, error) {
	hj, ok := c.w.(http.Hijacker)
	if !ok {
		return nil, errdefs.New(errdefs.Internal, "the connection cannot be taken over for a stream")
	}
	conn, rw, err := hj.Hijack()
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Internal, err, "the connection cannot be taken over for a stream")
	}
	c.started = true
	// net/http may have left a deadline from reading the header.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		_ = conn.Close()
		return nil, err
	}
	h := &hijacked{conn: conn, gone: make(chan struct{}), stop: make(chan struct{})}
	if rw.Reader.Buffered() > 0 {
		h.buffered = rw.Reader
	}
	answer := "HTTP/1.1 200 OK\r\nContent-Type: " + types.MediaTypeRawStream + "\r\n\r\n"
	if c.r.Header.Get("Upgrade") != "" {
		answer = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n" +
			"Api-Version: " + Version + "\r\nOstype: linux\r\nServer: " + c.w.Header().Get("Server") + "\r\n\r\n"
	}
	if _, err := io.WriteString(conn, answer); err != nil {
		_ = conn.Close()
		return nil, err
	}
	if losesEarlyOutput(c.r.UserAgent()) {
		h.hold = time.Now().Add(holdFor)
	}
	if !wantStdin {
		h.drain()
	}
	return h, nil
}

// drain reads and drops what the client still sends, and then waits for it to
// go away, unless the connection is watched already.
func (h *hijacked) drain() {
	h.watching.Do(func() {
		h.watch.Go(func() {
			_, _ = io.Copy(io.Discard, readerFunc(h.read))
			h.awaitGone()
		})
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (h *hijacked) read(p []byte) (int, error) {
	h.reading.Lock()
	defer h.reading.Unlock()
	if h.buffered != nil {
		n, err := h.buffered.Read(p[:min(len(p), h.buffered.Buffered())])
		if h.buffered.Buffered() == 0 {
			h.buffered = nil
		}
		return n, err
	}
	return h.conn.Read(p)
}

// Read reads the client's input. After its end the connection is watched for
// the client's going away.
func (h *hijacked) Read(p []byte) (int, error) {
	n, err := h.read(p)
	if err != nil {
		h.watching.Do(func() { h.watch.Go(h.awaitGone) })
		if !errors.Is(err, io.EOF) {
			h.leave()
			err = io.EOF // to the process it is the end of its input, however it came
		}
	}
	return n, err
}

// Write writes to the client. An error means that the client is gone.
func (h *hijacked) Write(p []byte) (int, error) {
	if !h.hold.IsZero() {
		h.held.Do(func() { time.Sleep(time.Until(h.hold)) })
	}
	n, err := h.conn.Write(p)
	if err != nil {
		h.leave()
	}
	return n, err
}

// leave marks the client as gone.
func (h *hijacked) leave() { h.goneOnce.Do(func() { close(h.gone) }) }

// awaitGone returns when the client, whose input has ended, has closed the
// other direction too, or when close is called. It sleeps in the runtime's
// poller, which wakes it on each change of the socket.
func (h *hijacked) awaitGone() {
	sc, ok := h.conn.(syscall.Conn)
	if !ok {
		return // no way to tell before the next write fails
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return
	}
	err = rc.Read(func(fd uintptr) bool {
		select {
		case <-h.stop:
			return true
		default:
		}
		return hungUp(int(fd))
	})
	select {
	case <-h.stop: // ended by us
	default:
		if err == nil || !errors.Is(err, net.ErrClosed) {
			h.leave()
		}
	}
}

// hungUp reports whether the peer of a socket has closed both directions.
// poll(2) tells for Unix sockets and TCP. A vsock peer's close shows only when
// writing: an empty send fails, and writes nothing if it does not.
func hungUp(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	if n, err := unix.Poll(p, 0); err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
		return true
	}
	err := unix.Sendto(fd, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, nil)
	return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNRESET)
}

// close ends the output and then, when the client has read it and closed, or
// after lingerFor, the connection. Closing at once could reset it and lose the
// output's tail where input is still on its way.
func (h *hijacked) close() {
	cw, ok := h.conn.(interface{ CloseWrite() error })
	select {
	case <-h.gone:
		ok = false
	default:
	}
	if ok && cw.CloseWrite() == nil {
		_ = h.conn.SetReadDeadline(time.Now().Add(lingerFor)) // also wakes awaitGone at the latest
		h.drain()
		h.watch.Wait()
	}
	h.watching.Do(func() {}) // a reader that comes late starts nothing any more
	close(h.stop)
	_ = h.conn.Close()
	h.watch.Wait()
}

// streams opens the streams of an attach or an exec: the call's hijacked
// connection, multiplexed unless the process has a terminal.
func (c *call) streams(terminal, stdin bool) (*hijacked, engine.AttachStreams, error) {
	contentType := types.MediaTypeRawStream
	if !terminal && c.version >= v1(42) {
		contentType = types.MediaTypeMultiplexedStream
	}
	h, err := c.hijack(contentType, stdin)
	if err != nil {
		return nil, engine.AttachStreams{}, err
	}
	st := engine.AttachStreams{Stdout: h, Stderr: h, Closed: h.gone}
	if stdin {
		st.Stdin = h
	}
	if !terminal {
		m := &mux{w: h}
		st.Stdout, st.Stderr = m.stream(stdcopy.Stdout), m.stream(stdcopy.Stderr)
	}
	return h, st, nil
}

// complain tells the client, in its output stream, what went wrong after the
// stream began, as dockerd does.
func complain(st engine.AttachStreams, err error) {
	_, _ = fmt.Fprintf(st.Stdout, "%s\r\n", errdefs.Sentence(err))
}
