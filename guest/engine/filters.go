//go:build linux

package engine

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdefs"
)

// check returns an error for a filter that is not among known.
func (f Filters) check(known ...string) error {
	for _, k := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(known, k) {
			return errdefs.New(errdefs.Invalid, "invalid filter '%s'", k)
		}
	}
	return nil
}

// values returns the values of key, sorted.
func (f Filters) values(key string) []string { return slices.Sorted(maps.Keys(f[key])) }

// exact reports whether source is one of key's values, or there is none.
func (f Filters) exact(key, source string) bool { return len(f[key]) == 0 || f[key][source] }

// prefix reports whether one of key's values is a prefix of source, or there
// is none.
func (f Filters) prefix(key, source string) bool {
	if len(f[key]) == 0 {
		return true
	}
	for v := range f[key] {
		if strings.HasPrefix(source, v) {
			return true
		}
	}
	return false
}

// match reports whether one of key's values, taken as a regular expression,
// matches one of sources, or there is none.
func (f Filters) match(key string, sources ...string) bool {
	if len(f[key]) == 0 {
		return true
	}
	for v := range f[key] {
		if slices.Contains(sources, v) {
			return true
		}
		if re, err := regexp.Compile(v); err == nil && slices.ContainsFunc(sources, re.MatchString) {
			return true
		}
	}
	return false
}

// labels reports whether all of key's values ("name" or "name=value") are
// among have.
func (f Filters) labels(key string, have map[string]string) bool {
	for want := range f[key] {
		k, v, withValue := strings.Cut(want, "=")
		got, ok := have[k]
		if !ok || withValue && got != v {
			return false
		}
	}
	return true
}

// boolean returns the value of key; def where it is not given.
func (f Filters) boolean(key string, def bool) (bool, error) {
	if len(f[key]) == 0 {
		return def, nil
	}
	yes := f[key]["1"] || f[key]["true"]
	no := f[key]["0"] || f[key]["false"]
	if yes == no {
		return false, errdefs.New(errdefs.Invalid, "invalid filter '%s=%s'", key, strings.Join(f.values(key), ","))
	}
	return yes, nil
}

// until returns the moment that the filter "until" names, as a point of time or
// as a duration before now; zero where it is not given.
func (f Filters) until(now time.Time) (time.Time, error) {
	vs := f.values("until")
	switch {
	case len(vs) == 0:
		return time.Time{}, nil
	case len(vs) > 1:
		return time.Time{}, errdefs.New(errdefs.Invalid, "more than one until filter specified")
	}
	v := vs[0]
	if d, err := time.ParseDuration(v); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return t, nil
		}
	}
	if sec, err := strconv.ParseFloat(v, 64); err == nil {
		return time.Unix(0, int64(sec*1e9)), nil
	}
	return time.Time{}, errdefs.New(errdefs.Invalid, "invalid filter 'until=%s'", v)
}
