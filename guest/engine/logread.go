//go:build linux

package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"
)

// record is one line of a json-file log.
type record struct {
	Log    string            `json:"log"`
	Stream string            `json:"stream"`
	Attrs  map[string]string `json:"attrs"`
	Time   time.Time         `json:"time"`
}

// logReader reads a container's log from a moment on.
type logReader struct {
	log   *jsonLog
	files []*os.File // oldest first; read from their current offsets
	gen   int        // of the last of files, or of the one that is not there yet
}

// reader opens the log at its last tail records (all if tail is negative).
// The caller calls close.
func (l *jsonLog) reader(tail int) (*logReader, error) {
	r := &logReader{log: l}
	l.mu.Lock()
	r.gen = l.gen
	for age := max(l.maxFile, 1) - 1; age >= 0; age-- {
		f, err := os.Open(l.name(age))
		if ignoreMissing(err) != nil {
			l.mu.Unlock()
			return nil, errors.Join(err, r.close())
		}
		if err == nil {
			r.files = append(r.files, f)
		} else if age == 0 {
			r.files = append(r.files, nil) // not written yet
		}
	}
	l.mu.Unlock()
	if tail < 0 {
		return r, nil
	}
	for i := len(r.files) - 1; i >= 0; i-- {
		f := r.files[i]
		if f == nil {
			continue
		}
		found, err := seekTail(f, tail)
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
		if tail -= found; tail <= 0 {
			// What is older is not wanted.
			for _, old := range r.files[:i] {
				_ = old.Close()
			}
			r.files = r.files[i:]
			break
		}
	}
	return r, nil
}

func (r *logReader) close() error {
	var errs []error
	for _, f := range r.files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	r.files = nil
	return errors.Join(errs...)
}

// seekTail sets f to the begin of its last n lines and returns how many
// there are, at most n.
func seekTail(f *os.File, n int) (int, error) {
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || n == 0 {
		return 0, err
	}
	const block = 8 << 10
	buf := make([]byte, block)
	found := 0
	for pos := end; pos > 0; {
		size := min(pos, block)
		pos -= size
		if _, err := f.ReadAt(buf[:size], pos); err != nil {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			// The newline at the very end closes the last line.
			if buf[i] != '\n' || pos+i == end-1 {
				continue
			}
			if found++; found == n {
				_, err := f.Seek(pos+i+1, io.SeekStart)
				return n, err
			}
		}
	}
	if end > 0 {
		found++
	}
	_, err = f.Seek(0, io.SeekStart)
	return found, err
}

// run calls emit for each record. Where follow is nil it ends with the log;
// else when follow is closed and all that came before is read, or ctx ends. A
// line that is no record (a crash may leave one) is skipped.
func (r *logReader) run(ctx context.Context, follow <-chan struct{}, emit func(record) (more bool, err error)) error {
	for {
		var last *bufio.Reader
		var part []byte
		for i, f := range r.files {
			if f == nil {
				continue
			}
			br := bufio.NewReaderSize(f, 32<<10)
			p, more, err := drain(br, nil, emit)
			if err != nil || !more {
				return err
			}
			if i == len(r.files)-1 {
				last, part = br, p
			}
		}
		if follow == nil {
			return nil
		}
		if more, err := r.follow(ctx, follow, last, part, emit); err != nil || !more {
			return err
		}
	}
}

// follow waits for what comes after the last file's end. It returns true when
// r.files holds the next files to read.
func (r *logReader) follow(ctx context.Context, stop <-chan struct{}, br *bufio.Reader, part []byte, emit func(record) (bool, error)) (bool, error) {
	for ending := false; ; {
		changed, gen := r.log.watch()
		// What was written before watch is read now; what comes after it closes changed.
		if br != nil {
			p, more, err := drain(br, part, emit)
			if err != nil || !more {
				return false, err
			}
			part = p
		}
		if gen != r.gen || br == nil {
			if ok, err := r.next(gen); err != nil || ok {
				return ok, err
			}
		}
		if ending {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-stop:
			ending = true
		case <-changed:
		}
	}
}

// next opens the file after the one that was read to its end. It returns
// false where there is none yet.
func (r *logReader) next(gen int) (bool, error) {
	want := r.gen
	if last := r.files[len(r.files)-1]; last != nil {
		want++
	}
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if want > r.log.gen {
		return false, nil
	}
	// The rotation may have gone on: the oldest that is kept follows.
	age := min(r.log.gen-want, max(r.log.maxFile, 1)-1)
	f, err := os.Open(r.log.name(age))
	if err != nil {
		return false, ignoreMissing(err)
	}
	_ = r.close()
	r.files, r.gen = []*os.File{f}, r.log.gen-age
	return true, nil
}

// drain emits the complete lines up to the end. part is the begin of a line
// that a former call met; the new one is returned.
func drain(br *bufio.Reader, part []byte, emit func(record) (bool, error)) ([]byte, bool, error) {
	for {
		line, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) || errors.Is(err, io.EOF) {
			part = append(part, line...)
			if err == io.EOF {
				return part, true, nil
			}
			continue
		}
		if err != nil {
			return part, false, err
		}
		if len(part) > 0 {
			line = append(part, line...)
			part = part[:0]
		}
		var rec record
		if len(bytes.TrimSpace(line)) == 0 || json.Unmarshal(line, &rec) != nil {
			continue
		}
		if more, err := emit(rec); err != nil || !more {
			return part, false, err
		}
	}
}
