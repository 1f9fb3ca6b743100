package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// qmp is a client of QEMU's monitor protocol (docs/interop/qmp-spec.rst), for
// one caller at a time.
type qmp struct {
	conn    net.Conn
	version [2]int // major, minor; known after handshake

	mu      sync.Mutex // one command at a time
	replies chan qmpMessage
	done    chan struct{} // closed when the reader has ended
	err     error         // why; set before done is closed
}

type qmpMessage struct {
	QMP *struct {
		Version struct {
			QEMU struct{ Major, Minor int }
		}
	}
	Return json.RawMessage
	Error  *struct{ Class, Desc string }
	Event  string
	Data   json.RawMessage
}

// qmpEvent is what QEMU tells by itself.
type qmpEvent struct {
	Name string
	Data json.RawMessage
}

// newQMP reads conn until it ends and calls event, in order, for each event;
// event must not call Execute. Close waits for it.
func newQMP(conn net.Conn, event func(qmpEvent)) *qmp {
	q := &qmp{conn: conn, replies: make(chan qmpMessage, 1), done: make(chan struct{})}
	go q.read(event)
	return q
}

func (q *qmp) read(event func(qmpEvent)) {
	defer close(q.done)
	d := json.NewDecoder(q.conn)
	for {
		var m qmpMessage
		if err := d.Decode(&m); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				err = errQMPEnded
			}
			q.err = err
			return
		}
		if m.Event != "" {
			event(qmpEvent{m.Event, m.Data})
			continue
		}
		select {
		case q.replies <- m:
		default: // an answer that nobody waits for any more
		}
	}
}

var errQMPEnded = errors.New("QEMU has closed its monitor")

func (q *qmp) next(ctx context.Context) (qmpMessage, error) {
	select {
	case m := <-q.replies:
		return m, nil
	default:
	}
	select {
	case m := <-q.replies:
		return m, nil
	case <-q.done:
		return qmpMessage{}, q.err
	case <-ctx.Done():
		return qmpMessage{}, ctx.Err()
	}
}

// handshake takes the greeting and leaves negotiation mode.
func (q *qmp) handshake(ctx context.Context) error {
	m, err := q.next(ctx)
	if err != nil {
		return err
	}
	if m.QMP == nil {
		return errors.New("QEMU's monitor does not greet")
	}
	q.version = [2]int{m.QMP.Version.QEMU.Major, m.QMP.Version.QEMU.Minor}
	return q.execute(ctx, "qmp_capabilities", nil)
}

// execute runs a command and decodes what it returns into result (nil to drop it).
func (q *qmp) execute(ctx context.Context, command string, result any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.send(command); err != nil {
		return err
	}
	m, err := q.next(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", command, err)
	case m.Error != nil:
		return fmt.Errorf("%s: QEMU says: %s (%s)", command, m.Error.Desc, m.Error.Class)
	case result == nil:
		return nil
	}
	return json.Unmarshal(m.Return, result)
}

// send writes a command without waiting for the answer.
func (q *qmp) send(command string) error {
	_, err := fmt.Fprintf(q.conn, "{\"execute\":%q}\n", command)
	return err
}

// close ends the connection and waits for the reader.
func (q *qmp) close() error {
	err := q.conn.Close()
	<-q.done
	return err
}
