package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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
	turn chan struct{} // holds an element while a call is in flight
	c    net.Conn
}

// NewClient returns a client on c, whose preamble is done. Close closes c.
func NewClient(c net.Conn) *Client { return &Client{turn: make(chan struct{}, 1), c: c} }

// Close closes the connection; a call in flight fails.
func (c *Client) Close() error { return c.c.Close() }

// Call sends req (nil for none) and decodes the answer into resp (nil to drop
// it). An error that the other side answered is a *RemoteError; after any other
// error, or the end of ctx while the call is in flight, the connection is
// closed, which cancels the call on the other side. A ctx that ends before the
// call's turn comes leaves the connection as it is.
func (c *Client) Call(ctx context.Context, verb string, req, resp any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", verb, ctx.Err())
	}
	stop := context.AfterFunc(ctx, func() { _ = c.c.SetDeadline(time.Unix(1, 0)) })
	var a response
	err = WriteMessage(c.c, request{verb, body})
	if err == nil {
		err = noEOF(ReadMessage(c.c, &a))
	}
	if late := !stop(); late || err != nil {
		_ = c.c.Close() // out of step, or with a deadline that has passed
	}
	if err != nil {
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
// (nil), ctx ends, or the stream breaks. The end of the connection cancels the
// call in flight. describe gives an error's class and sentence. Serve closes c.
func Serve(ctx context.Context, c net.Conn, verbs map[string]Handler, describe func(error) (class, sentence string)) error {
	ctx, cancel := context.WithCancel(ctx)
	requests, ended := make(chan request), make(chan error, 1)
	go func() {
		ended <- receive(ctx, c, requests)
		cancel()
	}()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	for {
		select {
		case q := <-requests:
			if err := WriteMessage(c, answer(ctx, q, verbs, describe)); err != nil {
				cancel()
				_ = c.Close()
				<-ended
				return err
			}
		case <-ctx.Done():
			_ = c.Close()
			err := <-ended
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// receive passes on requests until reading fails, and returns that error.
func receive(ctx context.Context, c net.Conn, to chan<- request) error {
	for {
		var q request
		if err := ReadMessage(c, &q); err != nil {
			return err
		}
		select {
		case to <- q:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func answer(ctx context.Context, q request, verbs map[string]Handler, describe func(error) (class, sentence string)) (a response) {
	h, ok := verbs[q.Verb]
	if !ok {
		a.Error, a.Class = fmt.Sprintf("unknown verb %q", q.Verb), "unimplemented"
		return a
	}
	out, err := h(ctx, q.Body)
	if err == nil {
		a.Body, err = json.Marshal(out)
	}
	if err != nil {
		a.Class, a.Error = describe(err)
	}
	return a
}
