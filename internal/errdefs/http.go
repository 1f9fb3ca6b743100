package errdefs

import "net/http"

// statusClientClosed is nginx's "client closed request", which dockerd uses too.
const statusClientClosed = 499

// HTTPStatus is the one mapping of classes to HTTP statuses.
func HTTPStatus(c Class) int {
	switch c {
	case Invalid:
		return http.StatusBadRequest
	case NotFound:
		return http.StatusNotFound
	case Conflict:
		return http.StatusConflict
	case NotModified:
		return http.StatusNotModified
	case Denied:
		return http.StatusForbidden
	case Unavailable:
		return http.StatusServiceUnavailable
	case Unimplemented:
		return http.StatusNotImplemented
	case Canceled:
		return statusClientClosed
	}
	return http.StatusInternalServerError
}
