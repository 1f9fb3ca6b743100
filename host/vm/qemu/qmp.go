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

// qmp is a client of QEMU's monitor protocol (docs/interop/qmp-spec.rst). Each
// command has an id, which its answer repeats. Its methods are safe for
// concurrent use.
type qmp struct {
	conn    net.Conn
	version [2]int          // major, minor; known after handshake
	hello   chan qmpMessage // the greeting, or what came in its place

	mu      sync.Mutex
	last    int64                     // id of the last command; the first is 1
	waiting map[int64]chan qmpMessage // by id: who waits for the answer

	done chan struct{} // closed when the reader has ended
	err  error         // why; set before done is closed
}

type qmpMessage struct {
	QMP *struct {
		Version struct {
			QEMU struct{ Major, Minor int }
		}
	}
	ID     int64 // 0 for what answers no command
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
// event must not call execute. Close waits for it.
func newQMP(conn net.Conn, event func(qmpEvent)) *qmp {
	q := &qmp{conn: conn, hello: make(chan qmpMessage, 1), waiting: map[int64]chan qmpMessage{}, done: make(chan struct{})}
	go q.read(event)
	return q
}

func (q *qmp) read(event func(qmpEvent)) {
	defer close(q.done)
	d := json.NewDecoder(q.conn)
	for greeted := false; ; {
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
		if !greeted {
			greeted = true
			q.hello <- m
			continue
		}
		q.mu.Lock()
		answer := q.waiting[m.ID]
		delete(q.waiting, m.ID)
		q.mu.Unlock()
		if answer != nil { // else nobody waits for it, or not any more
			answer <- m
		}
	}
}

var errQMPEnded = errors.New("QEMU has closed its monitor")

// next waits for the message that comes by the channel.
func (q *qmp) next(ctx context.Context, from <-chan qmpMessage) (qmpMessage, error) {
	select {
	case m := <-from:
		return m, nil
	case <-q.done:
	case <-ctx.Done():
	}
	select {
	case m := <-from: // it came before the end
		return m, nil
	default:
	}
	if ctx.Err() != nil {
		return qmpMessage{}, ctx.Err()
	}
	return qmpMessage{}, q.err
}

// handshake takes the greeting and leaves negotiation mode.
func (q *qmp) handshake(ctx context.Context) error {
	m, err := q.next(ctx, q.hello)
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
	answer := make(chan qmpMessage, 1) // the reader never waits
	id, err := q.write(command, answer)
	defer func() {
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
	}()
	if err != nil {
		return err
	}
	m, err := q.next(ctx, answer)
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

// send runs a command without waiting for the answer.
func (q *qmp) send(command string) error {
	_, err := q.write(command, nil)
	return err
}

// write writes a command, whose answer goes to answer (nil to drop it).
func (q *qmp) write(command string, answer chan qmpMessage) (id int64, err error) {
	q.mu.Lock()
	q.last++
	id = q.last
	if answer != nil {
		q.waiting[id] = answer
	}
	q.mu.Unlock()
	_, err = fmt.Fprintf(q.conn, "{\"execute\":%q,\"id\":%d}\n", command, id)
	return id, err
}

// close ends the connection and waits for the reader.
func (q *qmp) close() error {
	err := q.conn.Close()
	<-q.done
	return err
}
