package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// MaxMessage is the largest message in bytes; a longer one is an error and ends
// the connection.
const MaxMessage = 4 << 20

// WriteMessage writes v as one message.
func WriteMessage(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) > MaxMessage {
		return fmt.Errorf("control: message of %d bytes, at most %d", len(b), MaxMessage)
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

// ReadMessage reads one message into v. It reads no byte beyond it.
// The error is io.EOF where the stream ends before the first byte.
func ReadMessage(r io.Reader, v any) error {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(n[:])
	if size > MaxMessage {
		return fmt.Errorf("control: message of %d bytes, at most %d", size, MaxMessage)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return noEOF(err)
	}
	return json.Unmarshal(b, v)
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

type request struct {
	Verb string          `json:"verb"`
	Body json.RawMessage `json:"body,omitempty"`
}

type response struct {
	Body  json.RawMessage `json:"body,omitempty"`
	Error string          `json:"error,omitempty"`
	Class string          `json:"class,omitempty"`
}

// RemoteError is an error that the other side answered a call with.
type RemoteError struct {
	Verb     string
	Class    string // an internal/errdefs class
	Sentence string
}

func (e *RemoteError) Error() string { return e.Verb + ": " + e.Sentence }

// Client calls verbs on one connection, one at a time. It is safe for
// concurrent use.
type Client struct {
	mu sync.Mutex
	c  net.Conn
}

// NewClient returns a client on c, whose preamble is done. Close closes c.
func NewClient(c net.Conn) *Client { return &Client{c: c} }

// Close closes the connection; a call in flight fails.
func (c *Client) Close() error { return c.c.Close() }

// Call sends req (nil for none) and decodes the answer into resp (nil to drop
// it). An error that the other side answered is a *RemoteError; after any other
// error, or the end of ctx, the connection is closed.
func (c *Client) Call(ctx context.Context, verb string, req, resp any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var a response
	err = WriteMessage(c.c, request{verb, body})
	if err == nil {
		err = noEOF(ReadMessage(c.c, &a))
	}
	if err != nil {
		_ = c.c.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%s: %w", verb, err)
	}
	if a.Error != "" {
		return &RemoteError{Verb: verb, Class: a.Class, Sentence: a.Error}
	}
	if resp == nil || len(a.Body) == 0 {
		return nil
	}
	return json.Unmarshal(a.Body, resp)
}

// Handler answers one verb; body is the request's JSON.
type Handler func(ctx context.Context, body json.RawMessage) (any, error)

// Handle makes a Handler of a function with typed request and response.
func Handle[Req, Resp any](f func(context.Context, Req) (Resp, error)) Handler {
	return func(ctx context.Context, body json.RawMessage) (any, error) {
		var req Req
		if len(body) > 0 {
			if err := json.Unmarshal(body, &req); err != nil {
				return nil, err
			}
		}
		return f(ctx, req)
	}
}

// Serve answers calls on c, whose preamble is done, until the peer closes it
// (nil), ctx ends, or the stream breaks. describe gives an error's class and
// sentence. Serve closes c.
func Serve(ctx context.Context, c net.Conn, verbs map[string]Handler, describe func(error) (class, sentence string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	defer c.Close()
	for {
		var q request
		if err := ReadMessage(c, &q); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		var a response
		out, err := any(nil), error(nil)
		if h, ok := verbs[q.Verb]; ok {
			out, err = h(ctx, q.Body)
		} else {
			a.Error, a.Class = fmt.Sprintf("unknown verb %q", q.Verb), "unimplemented"
		}
		if err == nil && a.Error == "" {
			a.Body, err = json.Marshal(out)
		}
		if err != nil {
			a.Class, a.Error = describe(err)
		}
		if err := WriteMessage(c, a); err != nil {
			return err
		}
	}
}
