//go:build linux

package api

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/jsonstream"
)

// mux writes the frames of docker's multiplexed stream: an 8-byte header with
// the stream and the payload's length, then the payload
// (moby/api/pkg/stdcopy reads it). Its streams may be written to concurrently:
// a frame goes out in one Write.
type mux struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte // header and payload of the frame being written
}

const frameHeader = 8

// maxFrame bounds a frame's payload, and so the buffer; longer writes become several frames.
const maxFrame = 64 << 10

// stream returns the writer of one of m's streams.
func (m *mux) stream(t stdcopy.StdType) io.Writer { return muxStream{m, t} }

type muxStream struct {
	m *mux
	t stdcopy.StdType
}

func (s muxStream) Write(p []byte) (int, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	written := 0
	for len(p) > 0 {
		part := p[:min(len(p), maxFrame)]
		b := append(s.m.buf[:0], byte(s.t), 0, 0, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(len(part)))
		b = append(b, part...)
		s.m.buf = b
		n, err := s.m.w.Write(b)
		if err != nil {
			return written + max(0, n-frameHeader), err
		}
		written += len(part)
		p = p[len(part):]
	}
	return written, nil
}

// flushEvery is how long written bytes may wait for more to go out with. A
// first line goes at once; only a flood is gathered.
const flushEvery = 5 * time.Millisecond

// flusher writes to a response and flushes it soon after: at once if nothing
// was flushed lately. Close flushes the rest; the response is not touched after it.
type flusher struct {
	mu     sync.Mutex
	w      io.Writer
	f      http.Flusher
	timer  *time.Timer // nil until the first delayed flush
	armed  bool
	dirty  bool
	closed bool
	last   time.Time
}

func newFlusher(w http.ResponseWriter) *flusher {
	f, _ := w.(http.Flusher)
	return &flusher{w: w, f: f}
}

func (f *flusher) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.w.Write(p)
	f.dirty = true
	if f.armed {
		return n, err
	}
	if wait := flushEvery - time.Since(f.last); wait > 0 {
		f.armed = true
		if f.timer == nil {
			f.timer = time.AfterFunc(wait, f.late)
		} else {
			f.timer.Reset(wait)
		}
		return n, err
	}
	f.flush()
	return n, err
}

func (f *flusher) late() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = false
	if !f.closed && f.dirty {
		f.flush()
	}
}

func (f *flusher) flush() {
	f.dirty = false
	f.last = time.Now()
	if f.f != nil {
		f.f.Flush()
	}
}

// Flush sends what was written.
func (f *flusher) Flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flush()
}

func (f *flusher) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.timer != nil {
		f.timer.Stop() // one that fires now finds closed set
	}
	if f.dirty {
		f.flush()
	}
}

// progressEvery is the least time between two reports of one bar's growth.
const progressEvery = 100 * time.Millisecond

// progress is a stream of JSON messages, as answers a pull, a load or a push:
// one object per line, in docker's words. Its first message sends the status,
// so an error before it can still be an HTTP error; one after it goes in-band.
// Its methods may be called concurrently.
type progress struct {
	title jsonstream.Message // goes before the first message, if it has a status
	mu    sync.Mutex
	c     *call
	bars  map[string]bar // the last report of each layer
	err   error          // of the connection; nothing is written after it
}

type bar struct {
	action string
	at     time.Time
}

func (c *call) progress() *progress { return &progress{c: c, bars: map[string]bar{}} }

// begun reports whether anything was sent.
func (p *progress) begun() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.c.started
}

// line writes a status line; id is what docker prints before it, or "".
func (p *progress) line(id, status string) {
	p.message(jsonstream.Message{ID: id, Status: status})
}

// report writes one step. Steps of a growing bar are thinned out.
func (p *progress) report(s engine.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.ID != "" {
		now := time.Now()
		last, ok := p.bars[s.ID]
		if ok && last.action == s.Action && s.Current < s.Total && now.Sub(last.at) < progressEvery {
			return
		}
		p.bars[s.ID] = bar{s.Action, now}
	}
	m := jsonstream.Message{ID: s.ID, Status: s.Action}
	if s.ID != "" {
		m.Progress = &jsonstream.Progress{Current: s.Current, Total: s.Total}
	}
	p.send(m)
}

func (p *progress) message(m jsonstream.Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.send(m)
}

// fail writes err as the last message. The "error" beside "errorDetail" is for
// clients of before API 1.4, and for scripts.
func (p *progress) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sentence := errdefs.Sentence(err)
	p.send(struct {
		jsonstream.Message
		Legacy string `json:"error"`
	}{jsonstream.Message{Error: &jsonstream.Error{Message: sentence}}, sentence})
}

func (p *progress) send(m any) {
	if title := p.title; title.Status != "" {
		p.title = jsonstream.Message{}
		p.send(title)
	}
	if p.err != nil {
		return
	}
	b, err := json.Marshal(m)
	if err != nil {
		p.err = err
		return
	}
	if !p.c.started {
		p.c.w.Header().Set("Content-Type", "application/json")
		p.c.status(http.StatusOK)
	}
	if _, p.err = p.c.w.Write(append(b, '\r', '\n')); p.err == nil {
		p.c.flush()
	}
}

// flush sends what was written so far, headers included.
func (c *call) flush() {
	if f, ok := c.w.(http.Flusher); ok {
		f.Flush()
	}
}
