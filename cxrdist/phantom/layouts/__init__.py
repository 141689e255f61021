"""Layouts: how real datasets lie on disk, filled with drawn radiographs.

This file stays light: the command line lists the names before anything is drawn.
"""

TABLES = {"mimic_cxr": "mimic_cxr_jpg"}
"""Layouts without labels of their own, and the layout of the same patients that has them."""

HOMES = {
    "chexpert": "chexpert.LAYOUT",
    "nih14": "nih14.LAYOUT",
    "vindr_cxr": "vindr_cxr.LAYOUT",
    "shenzhen": "nlm_tb.SHENZHEN",
    "montgomery": "nlm_tb.MONTGOMERY",
    "kermany": "kermany.LAYOUT",
    "jsrt": "jsrt.LAYOUT",
    "openi": "openi.LAYOUT",
    "vindr_pcxr": "vindr_pcxr.LAYOUT",
    "ranzcr_clip": "ranzcr_clip.LAYOUT",
    "tb_portals": "tb_portals.LAYOUT",
    "mimic_cxr": "mimic.DICOM",
    "mimic_cxr_jpg": "mimic.JPG",
    "padchest": "padchest.LAYOUT",
    "uka_cxr": "uka_cxr.LAYOUT",
    "rsna_pneumonia": "rsna_pneumonia.LAYOUT",
    "siim_ptx": "siim_ptx.LAYOUT",
    "brax": "brax.LAYOUT",
    "reflacx": "mimic_derived.REFLACX_LAYOUT",
    "edema_severity": "mimic_derived.EDEMA_LAYOUT",
}
"""Where each layout lives: a module of this package and the name of its `Layout`.

A new module takes a `CODE` (the site in the random streams) of its own.  1 to 9 belong to chexpert, nih14, vindr_cxr,
mimic, padchest, uka_cxr, rsna_pneumonia, siim_ptx and brax; 10 to 17 to shenzhen, montgomery, kermany, jsrt, openi,
vindr_pcxr, ranzcr_clip and tb_portals; the next free one is 18.
"""
