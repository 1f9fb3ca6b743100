//go:build linux

package engine

import "github.com/moby/moby/api/types/container"

// unserved are the warnings of what a user asks for that is kept as data only.
// All else that is not served is refused. c is the user's, not yet the image's:
// nobody asked for what an image declares.
func unserved(c *container.Config, h *container.HostConfig) (warnings []string) {
	if k := c.Healthcheck; k != nil {
		if len(k.Test) > 0 && k.Test[0] != "NONE" || len(k.Test) == 0 && (k.Interval|k.Timeout|k.StartPeriod|k.StartInterval != 0 || k.Retries != 0) {
			warnings = append(warnings, "Healthchecks are kept as data, and not run yet by this version of dhow: the container will never be healthy or unhealthy.")
		}
	}
	if h.LogConfig.Config["tag"] != "" {
		warnings = append(warnings, "The log option tag is kept as data, and has no effect yet in this version of dhow.")
	}
	return warnings
}
