//go:build linux

package api

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/container"
)

// logTime is RFC 3339 with all nine digits, so that lines stay aligned.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

func (s *server) containerLogs(c *call) error {
	o := engine.LogOptions{
		Stdout: c.flag("stdout"), Stderr: c.flag("stderr"),
		Follow: c.flag("follow"), Timestamps: c.flag("timestamps"), Details: c.flag("details"),
		Tail: -1,
	}
	if !o.Stdout && !o.Stderr {
		return errdefs.New(errdefs.Invalid, "Bad parameters: you must choose at least one stream")
	}
	var err error
	if o.Since, err = c.time("since"); err != nil {
		return err
	}
	if o.Until, err = c.time("until"); err != nil {
		return err
	}
	if n, err := strconv.Atoi(c.query.Get("tail")); err == nil { // all else is "all"
		o.Tail = n
	}
	out := newFlusher(c.w)
	defer out.close()
	var stdout, stderr, system io.Writer = out, out, out
	start := func(terminal bool) error {
		contentType := types.MediaTypeRawStream
		if !terminal {
			m := &mux{w: out}
			stdout, stderr, system = m.stream(stdcopy.Stdout), m.stream(stdcopy.Stderr), m.stream(stdcopy.Systemerr)
			if c.version >= v1(42) {
				contentType = types.MediaTypeMultiplexedStream
			}
		}
		c.w.Header().Set("Content-Type", contentType)
		c.status(http.StatusOK)
		out.Flush()
		return nil
	}
	var line []byte
	err = s.Containers.ContainerLogs(c.ctx(), c.name, o, start, func(m engine.LogMessage) error {
		w := stdout
		if m.Stream == "stderr" {
			if w = stderr; !o.Stderr {
				return nil
			}
		} else if !o.Stdout {
			return nil
		}
		b := m.Line
		if o.Timestamps || o.Details {
			line = appendLogLine(line[:0], m, o)
			b = line
		}
		_, err := w.Write(b)
		return err
	})
	if err != nil && c.started {
		if c.ctx().Err() == nil {
			_, _ = fmt.Fprintf(system, "Error grabbing logs: %s\n", errdefs.Sentence(err))
		}
		return inBand(err)
	}
	return err
}

// appendLogLine appends a record's line with what the options ask for: its
// time, then its attributes, sorted and escaped as in a URL's query.
func appendLogLine(b []byte, m engine.LogMessage, o engine.LogOptions) []byte {
	if o.Timestamps {
		b = m.Time.UTC().AppendFormat(b, logTime)
		b = append(b, ' ')
	}
	if o.Details {
		var pairs []string
		for _, k := range slices.Sorted(maps.Keys(m.Attrs)) {
			pairs = append(pairs, url.QueryEscape(k)+"="+url.QueryEscape(m.Attrs[k]))
		}
		b = append(b, strings.Join(pairs, ",")...)
		b = append(b, ' ')
	}
	return append(b, m.Line...)
}

func (s *server) containerStats(c *call) error {
	stream := c.flagOr("stream", true)
	oneShot := c.version >= v1(41) && c.flag("one-shot")
	begin := func() {
		if !c.started {
			c.w.Header().Set("Content-Type", "application/json")
			c.status(http.StatusOK)
		}
	}
	enc := json.NewEncoder(c.w)
	err := s.Containers.ContainerStats(c.ctx(), c.name, stream, oneShot, func(r container.StatsResponse) error {
		begin()
		if err := enc.Encode(r); err != nil {
			return err
		}
		c.flush()
		return nil
	})
	if err == nil {
		begin()
	}
	return err
}
