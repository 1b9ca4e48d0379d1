package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/flowaudit/flowaudit/flow"
)

// savedConn is what one run of the agent leaves to the next about a live
// connection, so that it is neither counted twice nor its bytes lost. The
// fields are exported for encoding/binary; all have a fixed size.
type savedConn struct {
	Src, Dst, Translated [16]byte
	OrigDst              [16]byte
	SrcPort, OrigDstPort uint16
	DstPort, Zone        uint16
	Protocol             flow.Protocol
	State                connState
	Verdict              flow.Verdict
	Reason               flow.Reason
	ID                   uint32
	Start, Earliest      int64
	Sent, Received       flow.Counters
}

// stateHeader begins the file: who wrote it, when, and how many connections follow.
type stateHeader struct {
	Magic [8]byte
	Saved int64 // Unix nanoseconds
	Count uint64
}

const stateFile = "connections"

func stateMagic() [8]byte { return [8]byte{'f', 'a', 'c', 'o', 'n', 'n', '0', '2'} }

// saveState writes the table's live connections to dir. The file is replaced
// whole, so that a crash leaves the one before.
func (t *table) saveState(dir string, now time.Time) error {
	f, err := os.CreateTemp(dir, stateFile+".*")
	if err != nil {
		return fmt.Errorf("create state file: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // it is gone when all went well
	sum := crc32.NewIEEE()
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 64<<10)
	err = t.writeState(w, now)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = binary.Write(f, binary.LittleEndian, sum.Sum32())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write state file: %w", err)
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, stateFile)); err != nil {
		return fmt.Errorf("replace state file: %w", err)
	}
	return nil
}

func (t *table) writeState(w io.Writer, now time.Time) error {
	header := stateHeader{Magic: stateMagic(), Saved: now.UnixNano(), Count: uint64(t.conns.len())}
	if err := binary.Write(w, binary.LittleEndian, header); err != nil {
		return err
	}
	buf := make([]byte, 0, binary.Size(savedConn{}))
	for k, i := range t.conns.index {
		c := t.conns.at(i)
		var err error
		if buf, err = binary.Append(buf[:0], binary.LittleEndian, savedConn{
			Src: k.src, Dst: c.dst, Translated: c.translated, OrigDst: k.dst,
			SrcPort: k.srcPort, OrigDstPort: k.dstPort, DstPort: c.dstPort, Zone: k.zone,
			Protocol: k.protocol, State: c.state, Verdict: c.verdict, Reason: c.reason,
			ID: c.id, Start: c.start, Earliest: c.earliest, Sent: c.sent, Received: c.received,
		}); err != nil {
			return err
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// loadState reads what an earlier run left in dir, and when it left it. No
// file is no error: saved is the zero time.
func loadState(dir string) (known map[connKey]savedConn, saved time.Time, err error) {
	f, err := os.Open(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("open state file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read state file: %w", err)
	}
	known, saved, err = readState(f, info.Size())
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read state file %s: %w", f.Name(), err)
	}
	return known, saved, nil
}

var errState = errors.New("not a state file of this version, or damaged")

func readState(r io.Reader, size int64) (map[connKey]savedConn, time.Time, error) {
	sum := crc32.NewIEEE()
	buffered := bufio.NewReaderSize(r, 64<<10)
	body := io.TeeReader(buffered, sum)
	var header stateHeader
	if err := binary.Read(body, binary.LittleEndian, &header); err != nil || header.Magic != stateMagic() {
		return nil, time.Time{}, errState
	}
	const trailer = 4
	if want := int64(binary.Size(header)) + trailer; header.Count > uint64(size)/uint64(binary.Size(savedConn{})) ||
		size != want+int64(header.Count)*int64(binary.Size(savedConn{})) {
		return nil, time.Time{}, errState
	}
	known := make(map[connKey]savedConn, header.Count)
	for range header.Count {
		var s savedConn
		if err := binary.Read(body, binary.LittleEndian, &s); err != nil {
			return nil, time.Time{}, errState
		}
		known[connKey{src: s.Src, dst: s.OrigDst, srcPort: s.SrcPort, dstPort: s.OrigDstPort, zone: s.Zone, protocol: s.Protocol}] = s
	}
	var stored uint32
	if err := binary.Read(buffered, binary.LittleEndian, &stored); err != nil || stored != sum.Sum32() {
		return nil, time.Time{}, errState
	}
	return known, time.Unix(0, header.Saved), nil
}
