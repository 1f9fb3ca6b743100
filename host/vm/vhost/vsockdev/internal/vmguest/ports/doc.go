// Package ports has the port numbers on which vmguest and its test agree. The
// guest listens on all of them but Up.
package ports

const (
	Up       uint32 = 2000 // of the host: the guest dials it once it serves
	Echo     uint32 = 2001 // sends back what comes, then ends its stream
	Relay    uint32 = 2002 // 4 bytes (big-endian): a port of the host, which it dials; from there on it joins the two
	Sink     uint32 = 2003 // counts what comes; at the end of the stream it answers the count (8 bytes)
	Source   uint32 = 2004 // 8 bytes: a count; it sends as many, then ends its stream
	Stuck    uint32 = 2005 // reads nothing, sends nothing, until Power
	Late     uint32 = 2006 // 4 bytes: milliseconds, 4 bytes: a port of the host; waits, reads to the end, then reports the count there
	Close    uint32 = 2007 // closes at once
	Power    uint32 = 2008 // 'r' restarts the machine, anything else switches it off
	Unlisten uint32 = 2009 // nobody listens here
)
