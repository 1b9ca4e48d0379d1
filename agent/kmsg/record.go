package kmsg

import (
	"bytes"
	"errors"
	"strconv"
)

// record is one record of /dev/kmsg.
type record struct {
	sequence uint64
	micros   uint64 // since boot
	text     []byte
}

var errRecord = errors.New("not of the form: priority,sequence,microseconds,flags;text")

// parseRecord reads what one read of /dev/kmsg gives (Documentation/ABI/testing/dev-kmsg).
func parseRecord(b []byte) (r record, err error) {
	head, text, ok := bytes.Cut(b, []byte(";"))
	fields := bytes.SplitN(head, []byte(","), 4)
	if !ok || len(fields) < 3 {
		return r, errRecord
	}
	if r.sequence, err = strconv.ParseUint(string(fields[1]), 10, 64); err != nil {
		return r, errRecord
	}
	if r.micros, err = strconv.ParseUint(string(fields[2]), 10, 63); err != nil {
		return r, errRecord
	}
	// Lines behind the first hold properties of a device.
	r.text, _, _ = bytes.Cut(text, []byte("\n"))
	return r, nil
}
