package vhost

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

	"golang.org/x/sys/unix"
)

// Serve speaks vhost-user with QEMU over conn until conn ends, and closes it.
// It returns nil if QEMU ended it (or the caller, by closing conn), else what
// was wrong with a message. When it returns, the device has been stopped and no
// goroutine of Serve remains. Violations by the guest do not end it; they are
// logged and stop the device until the guest resets it.
func Serve(conn *net.UnixConn, dev Device, log *slog.Logger) error {
	s := newSession(dev, log)
	defer s.close()
	defer conn.Close()
	for {
		h, payload, fds, err := receive(conn)
		if err != nil {
			closeAll(fds)
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
				return nil
			}
			return fmt.Errorf("vhost-user: %w", err)
		}
		reply, err := s.handle(h, payload, &fds)
		closeAll(fds) // what handle did not take
		if reply == nil && h.Flags&flagNeedReply != 0 && s.protocol&protocolReplyAck != 0 {
			ack := make([]byte, 8)
			if err != nil {
				ack[0] = 1
			}
			reply = ack
		}
		if reply != nil {
			if _, werr := conn.Write(appendReply(nil, h.Request, reply)); werr != nil && err == nil {
				if errors.Is(werr, net.ErrClosed) || errors.Is(werr, unix.EPIPE) || errors.Is(werr, unix.ECONNRESET) {
					return nil
				}
				err = werr
			}
		}
		if err != nil {
			return fmt.Errorf("vhost-user: message %d: %w", h.Request, err)
		}
	}
}

// receive reads one message and the file descriptors that came with it, which
// are the caller's to close, error or not.
func receive(conn *net.UnixConn) (h header, payload []byte, fds []int, err error) {
	buf := make([]byte, headerSize)
	oob := make([]byte, unix.CmsgSpace(4*maxRegions))
	n, oobn, flags, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return h, nil, nil, err
	}
	if fds, err = parseRights(oob[:oobn]); err != nil {
		return h, nil, fds, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return h, nil, fds, errors.New("more file descriptors than a message may have")
	}
	if n == 0 {
		return h, nil, fds, io.EOF
	}
	if _, err = io.ReadFull(conn, buf[n:]); err != nil {
		return h, nil, fds, err
	}
	if h, err = parseHeader(buf); err != nil {
		return h, nil, fds, err
	}
	payload = make([]byte, h.Size)
	_, err = io.ReadFull(conn, payload)
	return h, payload, fds, err
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		fds = append(fds, got...)
		if err != nil {
			return fds, err
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
