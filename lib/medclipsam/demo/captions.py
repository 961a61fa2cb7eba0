"""What the demo CLIP is told: phrases for every structure, modality and finding, and where they lie in its text space.

Each concept has a *prototype*, a mixture of orthogonal directions. The text tower is taught the prototypes first; then
the vision tower is taught to answer an image with the sum of what can be seen in it. "lungs" is the left lung and the
right lung, so its prototype is the mixture of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from medclipsam.targets import Target

Mixture = Mapping[str, float]

MODALITY_WORDS: dict[str, tuple[str, ...]] = {
    "US": (
        "ultrasound",
        "breast ultrasound",
        "ultrasound image",
        "an ultrasound scan",
        "a sonogram",
        "sonography",
        "a breast sonogram",
        "an ultrasound of the breast",
        "a breast ultrasound image",
        "the breast ultrasound",
        "US image",
    ),
    "MR": (
        "MRI",
        "brain MRI",
        "an MRI scan",
        "an MR image",
        "magnetic resonance imaging",
        "contrast enhanced MRI",
        "T1 weighted MRI",
        "T2 weighted MRI",
        "a FLAIR MRI",
        "an axial brain MRI",
        "a head MRI",
        "an MRI of the brain",
        "magnetic resonance",
        "an MRI of the head",
    ),
    "XR": (
        "chest x-ray",
        "a chest radiograph",
        "an x-ray",
        "a frontal chest radiograph",
        "a posteroanterior chest x-ray",
        "a radiograph",
        "CXR",
        "a chest xray",
        "a chest film",
        "a frontal chest x-ray",
        "an x-ray of the chest",
        "x-ray image",
        "an anteroposterior chest x-ray",
    ),
    "CT": (
        "chest CT",
        "CT",
        "a CT scan",
        "an axial CT slice",
        "computed tomography",
        "a chest CT scan",
        "an axial chest CT slice",
        "thoracic CT",
        "a CT image",
        "a chest CT in the lung window",
        "a CT slice of the thorax",
        "a CT of the chest",
        "a computed tomography scan",
    ),
}

# Structures that can be pointed at: modality and mask name of the phantoms, and how they are called.
STRUCTURES: dict[str, tuple[str, ...]] = {
    "breast tumour": (
        "breast tumour",
        "breast tumor",
        "breast mass",
        "breast lesion",
        "malignant breast tumour",
        "benign breast tumor",
        "breast cancer",
        "tumour in the breast",
        "tumor of the breast",
        "hypoechoic mass",
        "hypoechoic breast mass",
        "breast nodule",
        "breast carcinoma",
        "dark mass with posterior shadowing",
        "irregular dark mass in the breast",
        "well defined oval mass in the breast",
        "spiculated breast mass",
        "breast cyst",
        "fibroadenoma",
        "breast fibroadenoma",
        "solid mass in the breast",
        "breast tumours",
        "lesion of the breast",
    ),
    "skin": ("skin", "skin layer", "skin line", "breast skin", "bright skin line", "dermis", "layer of skin"),
    "breast fat": (
        "breast fat",
        "subcutaneous fat",
        "fat layer",
        "fatty tissue",
        "fat lobules",
        "layer of fat",
        "adipose tissue",
        "fat under the skin",
    ),
    "breast gland": (
        "breast gland",
        "glandular tissue",
        "fibroglandular tissue",
        "mammary gland",
        "gland layer",
        "breast parenchyma",
        "layer of glandular tissue",
    ),
    "chest muscle": (
        "chest muscle",
        "muscle",
        "pectoral muscle",
        "muscle layer",
        "pectoralis muscle",
        "chest wall muscle",
        "layer of muscle",
    ),
    "brain tumour": (
        "brain tumour",
        "brain tumor",
        "tumour in the brain",
        "tumor of the brain",
        "brain mass",
        "brain lesion",
        "intracranial mass",
        "intracranial tumour",
        "glioma",
        "meningioma",
        "glioblastoma",
        "brain cancer",
        "enhancing tumour",
        "bright enhancing tumour in the brain",
        "ring enhancing brain lesion",
        "brain metastasis",
        "brain tumours",
        "malignant brain tumour",
        "benign brain tumor",
        "mass with surrounding oedema",
        "brain mass with surrounding edema",
        "pituitary tumour",
    ),
    "ventricles": (
        "ventricles",
        "lateral ventricles",
        "brain ventricles",
        "ventricle",
        "cerebral ventricles",
        "fluid filled ventricles",
        "ventricular system",
        "cerebrospinal fluid in the ventricles",
    ),
    "brain": (
        "brain",
        "the whole brain",
        "brain tissue",
        "brain parenchyma",
        "cerebrum",
        "cerebral hemispheres",
        "grey and white matter",
        "gray and white matter",
    ),
    "skull": ("skull", "skull bone", "cranium", "dark ring of the skull", "bone of the skull", "cranial bone"),
    "left lung": (
        "left lung",
        "the patient's left lung",
        "left lung field",
        "lung on the left",
        "lung on the left side",
        "left sided lung",
        "dark air filled left lung",
    ),
    "right lung": (
        "right lung",
        "the patient's right lung",
        "right lung field",
        "lung on the right",
        "lung on the right side",
        "right sided lung",
        "dark air filled right lung",
    ),
    "lungs": (
        "lungs",
        "both lungs",
        "lung",
        "lung fields",
        "the two lungs",
        "left and right lung",
        "right and left lung",
        "left and right lungs",
        "right and left lungs",
        "pair of lungs",
        "dark air filled lungs",
        "two aerated lungs",
        "lung parenchyma",
        "both lung fields",
        "pulmonary fields",
        "pulmonary parenchyma",
        "air filled lungs",
    ),
    "heart": (
        "heart",
        "cardiac silhouette",
        "heart shadow",
        "cardiac shadow",
        "the patient's heart",
        "heart silhouette",
        "bright heart",
        "cardiac chambers",
    ),
    "spine": (
        "spine",
        "vertebra",
        "vertebral body",
        "thoracic vertebra",
        "backbone",
        "spinal column",
        "vertebral column",
        "bright bone of the spine",
    ),
    "nodule": (
        "lung nodule",
        "pulmonary nodule",
        "nodule in the lung",
        "nodule",
        "lung tumour",
        "lung tumor",
        "lung mass",
        "small round nodule in the lung",
        "pulmonary mass",
        "lung cancer",
        "solitary pulmonary nodule",
    ),
}

FINDINGS = ("breast tumour", "brain tumour", "nodule")

# What is said of whole images.
STATES: dict[str, tuple[str, ...]] = {
    "normal US": (
        "normal breast tissue on ultrasound",
        "ultrasound image of a healthy breast",
        "breast ultrasound showing homogeneous fibroglandular tissue",
        "breast ultrasound showing skin, fat lobules and Cooper's ligaments",
        "normal layers of skin, fat, glandular tissue and muscle on breast ultrasound",
        "a normal ultrasound image",
        "an ultrasound scan without a lesion",
        "a normal breast ultrasound",
        "a healthy breast on ultrasound",
        "normal breast tissue",
        "a normal sonogram of the breast",
        "healthy breast",
    ),
    "normal MR": (
        "a normal brain MRI",
        "MRI of a healthy brain",
        "brain MRI showing normal grey and white matter",
        "brain MRI showing symmetrical ventricles and normal cortex",
        "normal brain anatomy on magnetic resonance imaging",
        "a healthy brain on magnetic resonance imaging",
        "a normal MRI scan of the head",
        "a normal MRI of the brain",
        "normal brain",
        "a healthy brain on MRI",
        "symmetrical normal brain on an MRI scan",
    ),
    "normal XR": (
        "a normal chest x-ray",
        "a healthy chest radiograph",
        "a normal radiograph",
        "a chest x-ray with clear lungs",
        "a normal frontal chest radiograph",
        "clear lungs without opacity on a chest x-ray",
        "healthy chest on x-ray",
        "a normal x-ray of the chest",
    ),
    "normal CT": (
        "a normal chest CT",
        "a normal computed tomography scan",
        "a healthy CT slice",
        "a normal CT scan of the chest",
        "a chest CT with clear lungs",
        "clear lungs without a nodule on CT",
        "healthy chest on computed tomography",
        "a normal axial CT slice",
    ),
    "opacity": (
        "pneumonia on a chest x-ray",
        "a chest radiograph with an opacity",
        "lung consolidation on x-ray",
        "a chest x-ray showing pneumonia",
        "an infiltrate in the lung on a chest x-ray",
        "airspace opacity",
        "pneumonia",
        "consolidation",
    ),
    "abdomen": (
        "an axial CT slice of the abdomen showing the liver and spleen",
        "an axial CT slice of the kidneys and bowel",
        "CT of the abdomen",
        "an abdominal CT slice",
        "liver and spleen on CT",
        "an axial CT slice of the liver",
        "abdomen",
        "liver",
        "kidneys",
        "spleen and stomach on a CT scan",
    ),
    "above heart": (
        "a CT slice of the upper chest above the heart",
        "an axial CT slice of the great vessels",
        "upper chest on CT",
        "an axial CT slice above the heart",
        "a chest CT at the level of the trachea",
    ),
    "above ventricles": (
        "a brain MRI slice above the ventricles",
        "an MRI slice of the brain near the vertex",
        "an axial brain MRI above the ventricles",
        "top of the brain on an MRI scan",
    ),
    "neck": (
        "an axial CT slice of the neck",
        "CT of the neck",
        "a CT slice of the neck and shoulders",
        "neck on computed tomography",
        "neck",
    ),
}

STATE_MODALITY: dict[str, str] = {
    "normal US": "US",
    "normal MR": "MR",
    "normal XR": "XR",
    "normal CT": "CT",
    "opacity": "XR",
    "abdomen": "CT",
    "above heart": "CT",
    "above ventricles": "MR",
    "neck": "CT",
}

# Medical things that no phantom shows, and things that are not medical at all.
ELSEWHERE: tuple[str, ...] = (
    "an x-ray of the abdomen showing bowel gas",
    "an x-ray of the pelvis and hips",
    "an x-ray of a hand",
    "an x-ray of the knee joint",
    "a skull x-ray",
    "an x-ray of the spine showing vertebrae",
    "an axial CT slice of the pelvis",
    "an axial CT slice of the head",
    "an x-ray of a foot",
    "a radiograph of the elbow",
    "an ultrasound of the gallbladder",
    "a fetal ultrasound",
    "an MRI of the knee",
    "an MRI of the prostate",
    "a mammogram",
    "a retinal photograph of the eye",
    "a microscope image of tissue",
    "an x-ray of the wrist",
    "an MRI of the shoulder",
    "thyroid ultrasound",
    "bladder",
    "prostate",
    "pancreas on CT",
    "a femur on an x-ray",
    "a dental x-ray of teeth",
)
GENERIC: tuple[str, ...] = (
    "a photograph of a dog",
    "a photograph of a cat",
    "a street with cars",
    "a photograph of a city",
    "a plate of food",
    "a red apple on a table",
    "a page of printed text",
    "random words without meaning",
    "a dog",
    "a cat on a sofa",
    "a blue car",
    "a mountain with snow",
    "a house and a tree",
    "a person riding a bicycle",
    "a bird in the sky",
    "a cup of coffee",
    "a computer keyboard",
    "a sunset over the sea",
    "a football match",
    "a glass of water",
    "flowers in a garden",
    "a train at a station",
    "a guitar",
    "noise",
    "an abstract pattern",
    "a black and white picture of nothing",
    "a drawing of shapes",
    "an empty image",
    "a bowl of soup",
    "a horse in a field",
    "a boat on a lake",
    "an aeroplane",
    "a bottle of wine",
    "a pair of shoes",
    "the number seven",
    "hello world",
    "good morning",
    "purple elephant",
    "banana",
    "a chair and a desk",
)

# In which modalities a structure is seen.
SEEN_IN: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("breast tumour", "skin", "breast fat", "breast gland", "chest muscle"), ("US",)),
    **dict.fromkeys(("brain tumour", "ventricles", "brain", "skull"), ("MR",)),
    **dict.fromkeys(("left lung", "right lung", "lungs", "heart"), ("XR", "CT")),
    **dict.fromkeys(("spine", "nodule"), ("CT",)),
}

_BARE = ("{}", "the {}", "a {}", "segment the {}", "find the {}", "show the {}", "where is the {}", "outline of the {}")
_PLACED = (
    "{} on {}",
    "the {} on {}",
    "{} in {}",
    "{1} showing {0}",
    "{1} showing the {0}",
    "{1} with {0}",
    "{1} of the {0}",
    "image of {} on {}",
    "segment the {} on {}",
    "a {} seen on {}",
)
# Never used in training: the tests ask the trained text tower these.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "breast tumour": ("please find a tumour of the breast", "ultrasound picture of a dark irregular breast lesion"),
    "brain tumour": ("show me the tumor in this brain MRI", "large enhancing mass in the brain"),
    "lungs": ("please outline both of the lungs", "the right and left lung fields on this radiograph"),
    "left lung": ("only the left lung on this film",),
    "right lung": ("the right lung field on this x-ray",),
    "heart": ("the silhouette of the heart on this film", "please mark the cardiac shadow"),
    "ventricles": ("the fluid filled lateral ventricles of the brain",),
    "spine": ("bone of the thoracic spine on this CT",),
}

MODALITY_SHARE = 0.3

# Stands for any word that the vocabulary does not have; so it is no part of it itself.
STRANGE = "\u2603"


def structure_of(target: Target) -> str:
    """Return the name that phantoms have for a known target's structure."""
    return {"lung-nodule": "nodule"}.get(target.meaning, target.meaning.replace("-", " "))


def directions() -> list[str]:
    """Return the names of the orthogonal directions of the text space."""
    own = [name for name in STRUCTURES if name != "lungs"]
    return [*own, *STATES, *(f"modality {name}" for name in MODALITY_WORDS), "elsewhere", "generic", "rest"]


def basis(dimension: int) -> dict[str, np.ndarray]:
    """Return an orthonormal vector float32 [dimension] for each direction, always the same."""
    names = directions()
    random = np.random.default_rng(20).standard_normal((dimension, len(names)))
    columns = np.linalg.qr(random)[0].T.astype(np.float32)
    return dict(zip(names, columns, strict=True))


def mixture(concept: str, modality: str | None = None) -> dict[str, float]:
    """Return the prototype of a concept, said with or without its modality."""
    half = 0.5**0.5
    parts = {"left lung": half, "right lung": half} if concept == "lungs" else {concept: 1.0}
    if modality:
        parts[f"modality {modality}"] = MODALITY_SHARE
    return parts


def prototype(parts: Mixture, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the unit vector of a mixture."""
    total = np.sum([weight * vectors[name] for name, weight in parts.items()], axis=0)
    return total / np.linalg.norm(total)


def structure_captions(structure: str, modality: str | None = None) -> Iterator[str]:
    """Yield every training caption of a structure, with the modality named or (None) bare."""
    for phrase in STRUCTURES[structure]:
        if modality is None:
            yield from (template.format(phrase) for template in _BARE)
        else:
            for words in MODALITY_WORDS[modality]:
                yield from (template.format(phrase, words) for template in _PLACED)


def training_texts(extra: Mapping[str, Sequence[str]] | None = None) -> list[tuple[str, dict[str, float], float]]:
    """Return every training text with the mixture it means and how often to show it (weights sum to about the groups).

    Parameters
    ----------
    extra : mapping, optional
        Further captions: concept, or concept and modality as "lungs/XR", to texts (those of the targets files).
    """
    texts: list[tuple[str, dict[str, float], float]] = []

    def add(group: Sequence[str], parts: dict[str, float], share: float) -> None:
        texts.extend((text, parts, share / len(group)) for text in group)

    for name in STRUCTURES:
        add(list(structure_captions(name)), mixture(name), 1.0)
        for modality in SEEN_IN[name]:
            add(list(structure_captions(name, modality)), mixture(name, modality), 1.0)
    for name, phrases in STATES.items():
        add(phrases, mixture(name, STATE_MODALITY[name]), 1.0)
    for modality, words in MODALITY_WORDS.items():
        add(words, {f"modality {modality}": 1.0}, 0.7)
    tumours = [f"{article}{word}" for word in ("tumour", "tumor", "mass", "lesion") for article in ("", "a ", "the ")]
    add(tumours, {"breast tumour": 0.7, "brain tumour": 0.7, "nodule": 0.3}, 0.7)
    add(ELSEWHERE, {"elsewhere": 1.0}, 1.5)
    # An unknown noun is no lung because it has a side, and no brain because it is on an MRI.
    placed = [words for group in MODALITY_WORDS.values() for words in group]
    add([f"{side} {STRANGE}" for side in ("left", "right", "the left", "the right", "both")], {"elsewhere": 1.0}, 0.8)
    add([f"the {STRANGE} on {words}" for words in placed], {"elsewhere": 1.0}, 0.8)
    add(GENERIC, {"generic": 1.0}, 2.0)
    for key, group in (extra or {}).items():
        name, _, modality = key.partition("/")
        add(group, mixture(name, modality or None), 0.7)
    return texts
