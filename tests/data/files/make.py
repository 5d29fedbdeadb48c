"""ROOT files that only ROOT itself can make; needs `pip install ROOT` (made with ROOT 6.40).

python tests/data/files/make.py FOLDER
"""

import array
import os
import sys
from pathlib import Path

import ROOT

JETS = 30
LISTS = {"Cpfcan_pt": "n_Cpfcand", "Cpfcan_BtagPf_trackSip2dSig": "n_Cpfcand", "sv_mass": "n_sv"}
PLAIN = {"jet_pt": "F", "jet_eta": "F", "npv": "F", "isB": "I", "isC": "I", "isUD": "I", "n_Cpfcand": "I", "n_sv": "I"}
PACKED = {
    "Cpfcan_pt": "f[0,100,16]",
    "Cpfcan_BtagPf_trackSip2dSig": "d[-100,100]",
    "sv_mass": "d[0,0,10]",
    "npv": "f",
    "x_f": "f[0,0,10]",
    "x_fr": "f[-10,10,16]",
    "x_d": "d",
    "x_dr": "d[-twopi,2*pi,20]",
    "x_d20": "d[0,0,20]",
}
NTUPLE = "jet_pt:jet_eta:npv:isB:isC:isUD"


def number(name, i):
    """The value of a branch with one number per jet in jet i."""
    if name.startswith("x_"):
        return i / 7 - 2
    truth = [int(i % 3 == k) for k in range(3)]
    names = ("jet_pt", "jet_eta", "npv", "isB", "isC", "isUD", "n_Cpfcand", "n_sv")
    return dict(zip(names, (20 + i, 0.1 * (i % 20) - 1, i, *truth, i % 4, i % 3), strict=True))[name]


def fill(codes, vectors=False, stop=None):
    """A tree in the current folder of the current file; `stop` ends the process after so many jets, without closing."""
    tree, buffers = ROOT.TTree("tree", ""), {}
    tree.SetAutoSave(0)
    for name, code in {**PLAIN, **dict.fromkeys(LISTS, "F"), **codes}.items():
        kind, size = {"d": "d", "I": "i"}.get(code[0], "f"), f"[{LISTS[name]}]" if name in LISTS else ""
        buffers[name] = array.array(kind, [0] * (4 if size else 1))
        tree.Branch(name, buffers[name], f"{name}{size}/{code}")
    lists = {kind: ROOT.std.vector(kind)() for kind in ("float", "Double32_t", "Float16_t") if vectors}
    for kind, values in lists.items():
        tree.Branch(f"v_{kind}", f"std::vector<{kind}>", values)
    for i in range(JETS):
        for name, buffer in buffers.items():
            for j in range(i % 4 if name.startswith("Cpf") else i % 3 if name == "sv_mass" else 1):
                buffer[j] = j + 1 + i / 8 if name in LISTS else number(name, i)
        for values in lists.values():
            values.clear()
            for j in range(i % 4):
                values.push_back(j + i / 4)
        tree.Fill()
        if stop == i:
            tree.AutoSave("SaveSelf")
            os._exit(0)
    return tree


def write(folder, name):
    """One file of its name."""
    file = ROOT.TFile(f"{folder}/{name}.root", "RECREATE")
    if "top" not in name:
        file.mkdir("deepntuplizer").cd()
    if name.startswith("tntuple"):
        kind, number_type = (ROOT.TNtupleD, "d") if name.endswith("d") else (ROOT.TNtuple, "f")
        tree = kind("tree", "", NTUPLE)
        for i in range(JETS):
            tree.Fill(array.array(number_type, [number(each, i) for each in NTUPLE.split(":")]))
    elif name == "chain":
        tree = ROOT.TChain("deepntuplizer/tree")
        tree.Add("TT.root")
    elif name == "histogram":
        tree = ROOT.TH1F("tree", "", 3, 0, 1)
    else:
        tree = fill(PACKED if name == "packed" else {}, name == "packed", JETS // 2 if "killed" in name else None)
    tree.Write("tree")
    file.Close()
    if name == "rntuple":
        source, target = f"{folder}/tree.tmp.root", f"{folder}/{name}.root"
        Path(target).rename(source)
        importer = ROOT.Experimental.RNTupleImporter.Create(source, "deepntuplizer/tree", target)
        importer.SetNTupleName("deepntuplizer/tree")
        importer.SetIsQuiet(True)
        importer.Import()
        Path(source).unlink()


if __name__ == "__main__":
    for kind in ("packed", "rntuple", "tntuple", "tntupled", "chain", "histogram", "killed", "killed_top"):
        if child := os.fork():
            os.waitpid(child, 0)
        else:
            write(sys.argv[1], kind)
            os._exit(0)
