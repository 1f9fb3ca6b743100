//go:build linux

package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// flag reports a boolean parameter in any of docker's spellings: all but "",
// "0", "no", "false" and "none" is true.
func (c *call) flag(key string) bool {
	switch strings.ToLower(strings.TrimSpace(c.query.Get(key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// flagOr is flag, with a value for an absent parameter.
func (c *call) flagOr(key string, absent bool) bool {
	if !c.query.Has(key) {
		return absent
	}
	return c.flag(key)
}

// uint32 returns a parameter that must be there.
func (c *call) uint32(key, what string) (uint, error) {
	s := c.query.Get(key)
	v, neg := strings.CutPrefix(s, "-")
	n, err := strconv.ParseUint(v, 10, 32)
	var ne *strconv.NumError
	switch {
	case v == "" || v[0] == '+':
		err = strconv.ErrSyntax
	case errors.As(err, &ne):
		err = ne.Err
	case err == nil && neg:
		err = strconv.ErrRange
	}
	if err != nil {
		return 0, errdefs.Wrap(errdefs.Invalid, err, "invalid %s %q: %v", what, s, err)
	}
	return uint(n), nil
}

// int returns an optional parameter, nil if it is absent or empty.
func (c *call) int(key string) (*int, error) {
	s := c.query.Get(key)
	if s == "" {
		return nil, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return nil, errdefs.Wrap(errdefs.Invalid, err, "invalid value for %q: %q is not a number", key, s)
	}
	return &n, nil
}

// time returns an optional point in time, "seconds" or "seconds.fraction"
// since 1970. It is the zero time if the parameter is absent, empty or 0.
func (c *call) time(key string) (time.Time, error) {
	s := c.query.Get(key)
	t, err := parseTime(s)
	if err != nil {
		return time.Time{}, errdefs.Wrap(errdefs.Invalid, err, "invalid value for %q: %v", key, err)
	}
	return t, nil
}

func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	whole, frac, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil || whole[0] == '+' {
		return time.Time{}, fmt.Errorf("invalid timestamp %q", s)
	}
	var nsec int64
	if frac != "" {
		if len(frac) > 20 || strings.Trim(frac, "0123456789") != "" {
			return time.Time{}, fmt.Errorf("invalid timestamp %q", s)
		}
		nsec, err = strconv.ParseInt((frac + "000000000")[:9], 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("invalid timestamp %q", s)
		}
	}
	if sec == 0 && nsec == 0 {
		return time.Time{}, nil
	}
	return time.Unix(sec, nsec).UTC(), nil
}

// platform returns the optional "platform" parameter, as "os[/arch[/variant]]".
// A lone word is an operating system or, if it is known as one, an architecture.
func (c *call) platform() (*ocispec.Platform, error) {
	s := c.query.Get("platform")
	if s == "" {
		return nil, nil
	}
	if strings.HasPrefix(s, "{") {
		return platformJSON(s)
	}
	return parsePlatform(s)
}

// archOf maps what users write to Go's name, with the default variant where
// the name implies one; ok is false for a name that is not known.
func archOf(s string) (arch, variant string, ok bool) {
	switch s {
	case "amd64", "x86_64", "x86-64":
		return "amd64", "", true
	case "arm64", "aarch64":
		return "arm64", "", true
	case "arm", "armhf":
		return "arm", "v7", true
	case "armel":
		return "arm", "v6", true
	case "386", "i386":
		return "386", "", true
	case "ppc64le", "ppc64", "s390x", "riscv64", "loong64", "mips64le", "mips64":
		return s, "", true
	}
	return s, "", false
}

func parsePlatform(s string) (*ocispec.Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	for _, p := range parts {
		if p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789_.-") != "" {
			return nil, errdefs.New(errdefs.Invalid, "%q is an invalid component of %q: platform specifier component must match \"^[A-Za-z0-9_.-]+$\"", p, s)
		}
	}
	p := ocispec.Platform{OS: parts[0]}
	switch len(parts) {
	case 1:
		if arch, variant, ok := archOf(parts[0]); ok {
			p = ocispec.Platform{OS: "linux", Architecture: arch, Variant: variant}
		}
	case 2, 3:
		p.Architecture, p.Variant, _ = archOf(parts[1])
		if len(parts) == 3 {
			p.Variant = parts[2]
		}
		if p.Architecture == "arm64" && p.Variant == "v8" { // the only one, so it is not written
			p.Variant = ""
		}
	default:
		return nil, errdefs.New(errdefs.Invalid, "%q: cannot parse platform specifier", s)
	}
	return &p, nil
}

func platformJSON(s string) (*ocispec.Platform, error) {
	var p ocispec.Platform
	if err := json.Unmarshal([]byte(s), &p); err != nil {
		return nil, errdefs.Wrap(errdefs.Invalid, err, "failed to parse platform: %v", err)
	}
	if p.OS == "" || p.Architecture == "" {
		return nil, errdefs.New(errdefs.Invalid, "both OS and Architecture must be provided")
	}
	return &p, nil
}

// filters returns the "filters" parameter.
func (c *call) filters() (engine.Filters, error) {
	return parseFilters(c.query.Get("filters"))
}
