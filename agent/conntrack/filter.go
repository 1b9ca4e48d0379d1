package conntrack

import (
	"encoding/binary"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/flowaudit/flowaudit/flow"
)

// Offsets in an event: struct nlmsghdr, struct nfgenmsg, attributes.
const (
	offType       = 4
	offFlags      = 6
	offAttributes = 20
	attrHeader    = 4
)

// filter drops in the kernel what nobody needs:
//
//   - updates of TCP connections that are established or later. That a reply
//     was seen came with SYN_RECV, and the end comes with a DESTROY; a
//     connection picked up in the middle tells its reply in an update without
//     a state. This is four of the seven events of a connection.
//   - events of connections from a loopback address: they never leave the host.
//
// Everything else passes, also what the program does not understand. The
// extension loads walk attributes (SKF_AD_NLATTR and SKF_AD_NLATTR_NEST,
// linux/filter.h): A is where to begin, X the type; A becomes where it is, or 0.
func filter() ([]bpf.RawInstruction, error) {
	const pass, drop = 0x40000, 0
	return assemble([]step{
		// Loopback: CTA_TUPLE_ORIG → CTA_TUPLE_IP → source address. The
		// original tuple is always the first attribute that says it.
		{ins: bpf.LoadConstant{Dst: bpf.RegA, Val: offAttributes}},
		{ins: bpf.LoadConstant{Dst: bpf.RegX, Val: ctaTupleOrig}},
		{ins: bpf.LoadExtension{Num: bpf.ExtNetlinkAttr}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifTrue: "update"},
		{ins: bpf.LoadConstant{Dst: bpf.RegX, Val: ctaTupleIP}},
		{ins: bpf.LoadExtension{Num: bpf.ExtNetlinkAttrNested}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifTrue: "update"},
		{ins: bpf.TAX{}},
		// CTA_TUPLE_IP holds the source first: header, header, address.
		{ins: bpf.LoadIndirect{Off: 2 * attrHeader, Size: 1}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 127}, ifTrue: "v4?"},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifTrue: "v6?", ifFalse: "update"},
		{label: "v4?", ins: bpf.LoadIndirect{Off: attrHeader, Size: 2}}, // length of the address attribute
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: hostShort(attrHeader + 4)}, ifTrue: "drop", ifFalse: "update"},
		{label: "v6?", ins: bpf.LoadIndirect{Off: 2 * attrHeader, Size: 4}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifFalse: "update"},
		{ins: bpf.LoadIndirect{Off: 2*attrHeader + 4, Size: 4}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifFalse: "update"},
		{ins: bpf.LoadIndirect{Off: 2*attrHeader + 8, Size: 4}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifFalse: "update"},
		{ins: bpf.LoadIndirect{Off: 2*attrHeader + 12, Size: 4}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 1}, ifTrue: "drop", ifFalse: "update"},

		// Updates: IPCTNL_MSG_CT_NEW without NLM_F_CREATE.
		{label: "update", ins: bpf.LoadAbsolute{Off: offType, Size: 2}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: hostShort(messageNew)}, ifFalse: "pass"},
		{ins: bpf.LoadAbsolute{Off: offFlags, Size: 2}},
		{ins: bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: hostShort(unix.NLM_F_CREATE)}, ifTrue: "pass"},
		{ins: bpf.LoadConstant{Dst: bpf.RegA, Val: offAttributes}},
		{ins: bpf.LoadConstant{Dst: bpf.RegX, Val: ctaProtoinfo}},
		{ins: bpf.LoadExtension{Num: bpf.ExtNetlinkAttr}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifTrue: "pass"},
		{ins: bpf.LoadConstant{Dst: bpf.RegX, Val: ctaProtoinfoTCP}},
		{ins: bpf.LoadExtension{Num: bpf.ExtNetlinkAttrNested}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifTrue: "pass"},
		{ins: bpf.LoadConstant{Dst: bpf.RegX, Val: ctaProtoinfoTCPState}},
		{ins: bpf.LoadExtension{Num: bpf.ExtNetlinkAttrNested}},
		{ins: bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0}, ifTrue: "pass"},
		{ins: bpf.TAX{}},
		{ins: bpf.LoadIndirect{Off: attrHeader, Size: 1}},
		{ins: bpf.JumpIf{Cond: bpf.JumpLessThan, Val: flow.TCPStateEstablished}, ifTrue: "pass"},
		{ins: bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: flow.TCPStateClose}, ifTrue: "pass", ifFalse: "drop"},

		{label: "pass", ins: bpf.RetConstant{Val: pass}},
		{label: "drop", ins: bpf.RetConstant{Val: drop}},
	})
}

// step is an instruction that others can jump to by its label, and that jumps
// to labels; an empty one is the next step.
type step struct {
	label, ifTrue, ifFalse string
	ins                    bpf.Instruction
}

// assemble turns labels into distances.
func assemble(steps []step) ([]bpf.RawInstruction, error) {
	at := make(map[string]int)
	for i, s := range steps {
		if s.label != "" {
			at[s.label] = i
		}
	}
	program := make([]bpf.Instruction, len(steps))
	for i, s := range steps {
		program[i] = s.ins
		jump, ok := s.ins.(bpf.JumpIf)
		if !ok {
			continue
		}
		if s.ifTrue != "" {
			jump.SkipTrue = uint8(at[s.ifTrue] - i - 1)
		}
		if s.ifFalse != "" {
			jump.SkipFalse = uint8(at[s.ifFalse] - i - 1)
		}
		program[i] = jump
	}
	return bpf.Assemble(program)
}

// hostShort is what a load, which reads network order, makes of a value in
// host order.
func hostShort(v uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, v)))
}
