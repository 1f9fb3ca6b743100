//go:build linux

package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// maxRecord is the longest piece of a line that one record holds, in bytes;
// a longer line becomes several records without newline (dockerd's figure).
const maxRecord = 16 << 10

// jsonLog is a container's log in dockerd's json-file form: a line
// {"log":…,"stream":…,"attrs":…,"time":…} per record, rotated by size. It is
// not synced: a machine crash may cost its end, as in dockerd.
//
// There is one jsonLog per container as long as the agent knows it; the file is
// made by the first record and open only while the container runs.
type jsonLog struct {
	path    string
	maxSize int64 // bytes; <= 0: no rotation
	maxFile int   // files kept in all, the current included; at least 1
	attrs   []byte

	mu      sync.Mutex
	f       *os.File
	size    int64
	gen     int           // rotations so far
	changed chan struct{} // nil without a waiter; closed by the next write or close
	buf     []byte
	failed  error
}

// lineWriter cuts one stream into records. Not safe for concurrent use.
type lineWriter struct {
	log    *jsonLog
	stream string
	part   []byte // of a line that has not ended
}

// write logs what b completes.
func (w *lineWriter) write(b []byte) {
	if w.log == nil {
		return
	}
	now := time.Now().UTC()
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n') + 1
		whole := n > 0
		if !whole {
			n = len(b)
		}
		if room := maxRecord - len(w.part); whole && n-1 > room || !whole && n > room {
			n, whole = room, false
		}
		w.part = append(w.part, b[:n]...)
		b = b[n:]
		if whole || len(w.part) == maxRecord && len(b) > 0 {
			w.log.append(w.stream, w.part, now)
			w.part = w.part[:0]
		}
	}
	w.log.flush()
}

// end logs what is left of a line without newline.
func (w *lineWriter) end() {
	if w.log == nil || len(w.part) == 0 {
		return
	}
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	w.log.append(w.stream, w.part, time.Now().UTC())
	w.part = nil
	w.log.flush()
}

// append encodes one record into the buffer; the lock is held.
func (l *jsonLog) append(stream string, line []byte, at time.Time) {
	if l.maxSize > 0 && l.size+int64(len(l.buf)) > l.maxSize {
		l.flush()
		l.rotate()
	}
	b := append(l.buf, `{"log":`...)
	b = appendJSONString(b, line)
	b = append(b, `,"stream":"`...)
	b = append(b, stream...)
	b = append(b, '"')
	if len(l.attrs) > 0 {
		b = append(append(b, `,"attrs":`...), l.attrs...)
	}
	b = append(b, `,"time":"`...)
	b = at.AppendFormat(b, time.RFC3339Nano)
	l.buf = append(b, "\"}\n"...)
}

// flush writes the buffer out and wakes the readers; the lock is held.
func (l *jsonLog) flush() {
	if len(l.buf) == 0 {
		return
	}
	defer func() { l.buf = l.buf[:0] }()
	if l.f == nil {
		if err := l.open(); err != nil {
			l.failed = err
			return
		}
	}
	n, err := l.f.Write(l.buf)
	l.size += int64(n)
	if err != nil {
		l.failed = err
	}
	l.wake()
}

// open opens the current file for appending; the lock is held. A record that
// a crash cut off gets its newline, so that only it is lost.
func (l *jsonLog) open() error {
	f, err := os.OpenFile(l.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return err
	}
	l.f, l.size = f, st.Size()
	var last [1]byte
	if l.size > 0 {
		if _, err := f.ReadAt(last[:], l.size-1); err == nil && last[0] != '\n' {
			l.buf = append([]byte{'\n'}, l.buf...)
		}
	}
	return nil
}

// rotate makes the current file the youngest of the old ones; the lock is held.
func (l *jsonLog) rotate() {
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
	if l.maxFile < 2 {
		// A new file instead of truncation: who reads the old one reads it to its end.
		l.failed = ignoreMissing(os.Remove(l.path))
	} else {
		for i := l.maxFile - 1; i > 0; i-- {
			if err := ignoreMissing(os.Rename(l.name(i-1), l.name(i))); err != nil {
				l.failed = err
			}
		}
	}
	l.size = 0
	l.gen++
}

// name returns the file that is age rotations old.
func (l *jsonLog) name(age int) string {
	if age == 0 {
		return l.path
	}
	return l.path + "." + strconv.Itoa(age)
}

// wake tells the waiting readers; the lock is held.
func (l *jsonLog) wake() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// watch returns a channel that the next change closes, and the generation of
// the current file.
func (l *jsonLog) watch() (<-chan struct{}, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed, l.gen
}

// close closes the file when the container stops, and wakes the readers. It
// returns the last error of writing.
func (l *jsonLog) close() error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.failed
	l.failed = nil
	if l.f != nil {
		err = errors.Join(err, l.f.Close())
		l.f = nil
	}
	l.buf = nil
	l.wake()
	if err != nil {
		return fmt.Errorf("write the container's log: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

const hexDigits = "0123456789abcdef"

// appendJSONString appends s as a JSON string as encoding/json writes it: HTML
// escaped, what is not UTF-8 replaced by U+FFFD.
func appendJSONString(dst, s []byte) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&' {
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, `\n`...)
			case '\r':
				dst = append(dst, `\r`...)
			case '\t':
				dst = append(dst, `\t`...)
			default:
				dst = append(dst, `\u00`...)
				dst = append(dst, hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRune(s[i:])
		if r == utf8.RuneError && n == 1 {
			dst = append(append(dst, s[start:i]...), `\ufffd`...)
			start = i + n
		} else if r == '\u2028' || r == '\u2029' {
			dst = append(append(dst, s[start:i]...), `\u202`...)
			dst = append(dst, hexDigits[r&15])
			start = i + n
		}
		i += n
	}
	return append(append(dst, s[start:]...), '"')
}
