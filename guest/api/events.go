//go:build linux

package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"dhow/guest/engine"
	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"
)

// events streams events, one JSON object each, sent at once.
func (s *server) events(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	o := engine.EventOptions{Filters: f}
	if o.Since, err = c.time("since"); err != nil {
		return err
	}
	if o.Until, err = c.time("until"); err != nil {
		return err
	}
	if !o.Until.IsZero() && o.Until.Before(o.Since) {
		return errdefs.New(errdefs.Invalid, "`since` time (%s) cannot be after `until` time (%s)", c.query.Get("since"), c.query.Get("until"))
	}
	// What the client does once it has the header must not be missed, so the
	// stream begins here, not where the engine gets to it.
	if o.Since.IsZero() && (o.Until.IsZero() || o.Until.After(time.Now())) {
		o.Since = time.Now()
	}
	contentType := eventsType(c.r.Header.Values("Accept"))
	c.w.Header().Set("Content-Type", contentType)
	c.status(http.StatusOK)
	c.flush()
	enc := json.NewEncoder(c.w)
	enc.SetEscapeHTML(false)
	err = s.System.Events(c.ctx(), o, func(m events.Message) error {
		e := shapeEvent(m, c.version)
		if e == nil {
			return nil
		}
		if contentType == types.MediaTypeJSONSequence {
			if _, err := c.w.Write([]byte{0x1e}); err != nil { // RFC 7464: a record separator before each
				return err
			}
		}
		if err := enc.Encode(e); err != nil {
			return err
		}
		c.flush()
		return nil
	})
	return inBand(err)
}

// eventsType chooses the stream's type among what the client accepts. The
// default is not true of the stream as a whole, but is what clients know.
func eventsType(accept []string) string {
	a := strings.Join(accept, ",")
	for _, t := range []string{types.MediaTypeNDJSON, types.MediaTypeJSONSequence} {
		if strings.Contains(a, t) {
			return t
		}
	}
	return types.MediaTypeJSON
}
