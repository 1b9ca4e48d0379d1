package tap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// notification is a message as the kernel sends it: header, nfgenmsg, the
// table's name, and something behind it.
func notification(message uint16, family uint8, table string) []byte {
	name := append([]byte(table), 0)
	attribute := binary.NativeEndian.AppendUint16(nil, uint16(4+len(name)))
	attribute = binary.NativeEndian.AppendUint16(attribute, nftaTable)
	attribute = append(attribute, name...)
	for len(attribute)%4 != 0 {
		attribute = append(attribute, 0)
	}
	payload := append([]byte{family, 0, 0, 1}, attribute...)
	payload = append(payload, 8, 0, 9, 0, 1, 2, 3, 4)
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, removal(message))
	b = append(b, make([]byte, 10)...)
	return append(b, payload...)
}

func TestRemovals(t *testing.T) {
	const inet = unix.NFPROTO_INET
	ours := notification(unix.NFT_MSG_DELRULE, inet, tableName)
	for _, c := range []struct {
		name     string
		datagram []byte
		want     bool
	}{
		{"a rule of the table", ours, true},
		{"a chain", notification(unix.NFT_MSG_DELCHAIN, inet, tableName), true},
		{"the table itself", notification(unix.NFT_MSG_DELTABLE, inet, tableName), true},
		{"behind another program's message", append(notification(unix.NFT_MSG_NEWRULE, inet, "other"), ours...), true},
		{"something new in the table", notification(unix.NFT_MSG_NEWRULE, inet, tableName), false},
		{"another table", notification(unix.NFT_MSG_DELTABLE, inet, tableName+"2"), false},
		{"a table of that name in another family", notification(unix.NFT_MSG_DELTABLE, unix.NFPROTO_IPV4, tableName), false},
		{"nothing", nil, false},
		{"what cannot be read may be one", ours[:30], true},
		{"a removal without a name may be one", notification(unix.NFT_MSG_DELRULE, inet, tableName)[:20:20], true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := removes(c.datagram, tableName); got != c.want {
				t.Errorf("%v, want %v", got, c.want)
			}
		})
	}
}

func FuzzRemoves(f *testing.F) {
	f.Add(notification(unix.NFT_MSG_DELRULE, unix.NFPROTO_INET, tableName))
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		if removes(b, tableName) && len(b) == 0 {
			t.Error("nothing removes something")
		}
	})
}

func TestMasks(t *testing.T) {
	for _, c := range []struct {
		bits, length int
		want         []byte
	}{
		{0, 4, []byte{0, 0, 0, 0}},
		{8, 4, []byte{255, 0, 0, 0}},
		{12, 4, []byte{255, 240, 0, 0}},
		{32, 4, []byte{255, 255, 255, 255}},
		{65, 16, append(bytes.Repeat([]byte{255}, 8), 128, 0, 0, 0, 0, 0, 0, 0)},
		{128, 16, bytes.Repeat([]byte{255}, 16)},
	} {
		t.Run(fmt.Sprint(c.bits), func(t *testing.T) {
			if got := maskOf(c.bits, c.length); !bytes.Equal(got, c.want) {
				t.Errorf("% x, want % x", got, c.want)
			}
		})
	}
}
