//go:build linux

package engine

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"dhow/internal/errdefs"
)

// logSettings are what --log-driver and --log-opt come to.
type logSettings struct {
	off         bool  // driver none
	maxSize     int64 // bytes; 0: unlimited
	maxFile     int
	labels, env []string
}

// logOptions reads a log configuration by dockerd's rules. The driver local is
// served by the json-file form too, with local's own limits (5 files of
// 20 MB): what differs is the files' format, which no client sees.
func logOptions(c container.LogConfig) (logSettings, error) {
	s := logSettings{maxFile: 1}
	bad := func(format string, args ...any) (logSettings, error) {
		return s, errdefs.New(errdefs.Invalid, format, args...)
	}
	driver := c.Type
	known := []string{"max-size", "max-file", "compress", "mode", "max-buffer-size"}
	switch driver {
	case "", "json-file":
		driver = "json-file"
		known = append(known, "labels", "env", "tag")
	case "local":
		s.maxSize, s.maxFile = 20<<20, 5
	case "none":
		s.off = true
		known = nil
	default:
		return bad("logger: no log driver named '%s' is registered", c.Type)
	}
	for k, v := range c.Config {
		if !slices.Contains(known, k) {
			return bad("unknown log opt '%s' for %s log driver", k, driver)
		}
		var err error
		switch k {
		case "max-size":
			if v == "-1" {
				s.maxSize = 0
			} else if s.maxSize, err = units.FromHumanSize(v); err != nil || s.maxSize <= 0 {
				return bad("invalid value for max-size: %s", v)
			}
		case "max-file":
			if s.maxFile, err = strconv.Atoi(v); err != nil {
				return bad("invalid value for max-file: %s", v)
			}
			if s.maxFile < 1 {
				return bad("max-file cannot be less than 1")
			}
		case "compress":
			on, err := strconv.ParseBool(v)
			if err != nil {
				return bad("invalid value for compress: %s", v)
			}
			if on {
				return s, errdefs.New(errdefs.Unimplemented, "compressed log files (--log-opt compress=true) are not supported yet by this version of dhow")
			}
		case "mode":
			if v == "non-blocking" {
				return s, errdefs.New(errdefs.Unimplemented, "non-blocking logs (--log-opt mode=non-blocking) are not supported yet by this version of dhow")
			}
			if v != "" && v != "blocking" {
				return bad("logger: logging mode %q not supported", v)
			}
		case "labels":
			s.labels = strings.Split(v, ",")
		case "env":
			s.env = strings.Split(v, ",")
		}
	}
	if _, ok := c.Config["max-buffer-size"]; ok {
		return bad("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
	}
	return s, nil
}

// newLog returns the log of a container, or nil where its driver keeps none.
func newLog(path string, c *container.Config, h *container.HostConfig) (*jsonLog, error) {
	s, err := logOptions(h.LogConfig)
	if err != nil || s.off {
		return nil, err
	}
	attrs := map[string]string{}
	for _, l := range s.labels {
		if v, ok := c.Labels[l]; ok {
			attrs[l] = v
		}
	}
	for _, e := range c.Env {
		if k, v, ok := strings.Cut(e, "="); ok && slices.Contains(s.env, k) {
			attrs[k] = v
		}
	}
	l := &jsonLog{path: path, maxSize: s.maxSize, maxFile: s.maxFile}
	if len(attrs) > 0 {
		if l.attrs, err = json.Marshal(attrs); err != nil {
			return nil, err
		}
	}
	return l, nil
}
