//go:build linux

package layer

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
)

// chunkSize is how many bytes travel between goroutines at a time, and
// chunks how many of these may be on their way for one stream.
const (
	chunkSize = 256 << 10
	chunks    = 6
)

var chunkPool = sync.Pool{New: func() any { return &chunk{buf: make([]byte, chunkSize)} }}

type chunk struct {
	buf  []byte
	n    int
	refs atomic.Int32
}

// FanOut reads src once and gives all of it to every sink, each in its own
// goroutine. A sink that returns nil early misses the rest; one that fails
// ends the whole. It returns when all sinks have returned, with the first
// error: src's, a sink's or ctx's. A sink sees src's error as its reader's.
//
// src itself must end when ctx does: FanOut waits for its Read.
func FanOut(ctx context.Context, src io.Reader, sinks ...func(io.Reader) error) error {
	f := &fan{stop: make(chan struct{}), free: make(chan struct{}, chunks)}
	var wg sync.WaitGroup
	for _, sink := range sinks {
		out := &fanReader{f: f, ch: make(chan *chunk, chunks)}
		f.outs = append(f.outs, out)
		wg.Add(1)
		go func() {
			defer wg.Done()
			if err := sink(out); err != nil {
				f.fail(err)
			}
			out.drain()
		}()
	}
	if err := f.read(ctx, src); err != nil {
		f.fail(err)
	}
	for _, out := range f.outs {
		close(out.ch)
	}
	wg.Wait()
	return f.err
}

type fan struct {
	outs []*fanReader
	free chan struct{} // one token per chunk in flight
	stop chan struct{} // closed by the first failure
	once sync.Once
	err  error
}

func (f *fan) fail(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.stop)
	})
}

// read is the producer: it returns src's error, nil at its end.
func (f *fan) read(ctx context.Context, src io.Reader) error {
	for {
		select {
		case f.free <- struct{}{}:
		case <-f.stop:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		c := chunkPool.Get().(*chunk)
		err := c.fill(src)
		if c.n == 0 {
			f.release(c)
		} else {
			c.refs.Store(int32(len(f.outs)))
			for _, out := range f.outs {
				out.ch <- c // never blocks: free bounds what is in flight
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// fill reads until the chunk is at least half full, or src ends or fails.
func (c *chunk) fill(src io.Reader) error {
	c.n = 0
	for c.n < len(c.buf)/2 {
		n, err := src.Read(c.buf[c.n:])
		c.n += n
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *fan) release(c *chunk) {
	chunkPool.Put(c)
	<-f.free
}

// fanReader is one sink's view of the stream.
type fanReader struct {
	f   *fan
	ch  chan *chunk
	cur *chunk
	off int
}

func (r *fanReader) Read(p []byte) (int, error) {
	if r.cur == nil {
		select {
		case <-r.f.stop:
			return 0, r.f.err
		default:
		}
		c, ok := <-r.ch
		if !ok {
			select {
			case <-r.f.stop:
				return 0, r.f.err
			default:
				return 0, io.EOF
			}
		}
		r.cur, r.off = c, 0
	}
	n := copy(p, r.cur.buf[r.off:r.cur.n])
	r.off += n
	if r.off == r.cur.n {
		r.done()
	}
	return n, nil
}

func (r *fanReader) done() {
	if r.cur.refs.Add(-1) == 0 {
		r.f.release(r.cur)
	}
	r.cur = nil
}

// drain gives back what the sink did not read.
func (r *fanReader) drain() {
	if r.cur != nil {
		r.done()
	}
	for c := range r.ch {
		r.cur = c
		r.done()
	}
}

// WriteTo hands whole chunks to w, without a copy in between.
func (r *fanReader) WriteTo(w io.Writer) (total int64, err error) {
	for {
		if r.cur == nil {
			var b [0]byte
			if _, err := r.Read(b[:]); err == io.EOF {
				return total, nil
			} else if err != nil {
				return total, err
			}
			if r.cur == nil {
				continue
			}
		}
		n, err := w.Write(r.cur.buf[r.off:r.cur.n])
		total += int64(n)
		r.done()
		if err != nil {
			return total, err
		}
	}
}
