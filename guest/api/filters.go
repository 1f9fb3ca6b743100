//go:build linux

package api

import (
	"encoding/json"

	"dhow/guest/engine"
	"dhow/internal/errdefs"
)

// parseFilters reads filters in docker's JSON, {"name":{"value":true}}, or in
// the older {"name":["value"]}. It returns nil for none. A value that is set
// to false counts as given, as it does for dockerd.
func parseFilters(s string) (engine.Filters, error) {
	if s == "" {
		return nil, nil
	}
	var f map[string]map[string]bool
	if json.Unmarshal([]byte(s), &f) == nil {
		for _, values := range f {
			for v := range values {
				values[v] = true
			}
		}
		return f, nil
	}
	var old map[string][]string
	if err := json.Unmarshal([]byte(s), &old); err != nil {
		return nil, errdefs.Wrap(errdefs.Invalid, err, "invalid filter")
	}
	f = make(map[string]map[string]bool, len(old))
	for name, values := range old {
		f[name] = make(map[string]bool, len(values))
		for _, v := range values {
			f[name][v] = true
		}
	}
	return f, nil
}
