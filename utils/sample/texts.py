"""What is said of a phantom: radiology captions, and plain descriptions free of medical words.

The two vocabularies share little on purpose: the tiny model is pretrained on pictures with plain
descriptions, so that an adapter has a real change of language to learn.
"""

from utils.sample.phantoms import picture_side, random_phantom

VIEWS = {
    "CT": {"brain": ("Axial CT", "Non-contrast CT", "CT image"),
           "": ("Axial CT", "Contrast-enhanced CT", "CT image")},
    "MR": {"": ("Axial MRI", "T2-weighted MRI", "MR image")},
    "X-ray": {"chest": ("Frontal X-ray", "Posteroanterior radiograph", "X-ray image"),
              "": ("Frontal X-ray", "Anteroposterior radiograph", "X-ray image")},
    "ultrasound": {"": ("Transverse ultrasound", "Grayscale ultrasound", "Ultrasound image")},
    "angiography": {"": ("Digital subtraction angiography", "Catheter angiography",
                         "Angiography image")},
}
PARTS = {
    "chest": ("{side} lung", "{side} lung"),
    "abdomen": ("{side} kidney", "{side} side"),
    "brain": ("{side} hemisphere", "{side} cerebral hemisphere"),
    "knee": ("{side} side", "{side} joint"),
}
PATTERNS = (
    "{view} of the {region} showing a {size} {finding} in the {part}{arrow}.",
    "{view} of the {region} shows a {size} {finding} in the {part}{arrow}.",
    "{view} of the {region} demonstrates a {size} {finding} in the {part}{arrow}.",
    "{view} of the {region} with a {size} {finding} in the {part}{arrow}.",
    "{view} of the {region} reveals a {size} {finding} of the {part}{arrow}.",
    "A {size} {finding} in the {part}{arrow} on {view} of the {region}.",
)
NORMAL_PATTERNS = (
    "{view} of the {region} showing no focal abnormality.",
    "{view} of the {region} shows no focal abnormality.",
    "{view} of the {region} with no focal abnormality.",
)
# Every figure legend of this kind is short in life, so the commonest captions are short ones.
SHORT = {"chest": "Chest", "abdomen": "Abdominal", "brain": "Brain", "knee": "Knee"}
SHORT_MODALITY = {"CT": "CT", "MR": "MRI", "X-ray": "X-ray", "ultrasound": "ultrasound",
                  "angiography": "angiography"}


def caption(phantom, rng):
    """A radiology caption in ROCO's style, one sentence of about 12 words, the patient's sides."""
    film = phantom.modality == "X-ray" and phantom.region == "chest"
    if phantom.finding == "normal" and rng.random() < (.9 if film else .1):
        return short_caption(phantom)
    patterns = NORMAL_PATTERNS if phantom.finding == "normal" else PATTERNS
    pattern = patterns[rng.integers(len(patterns))]
    views = VIEWS[phantom.modality]
    views = views.get(phantom.region, views[""])
    view, part = views[rng.integers(len(views))], PARTS[phantom.region][rng.integers(2)]
    if not pattern.startswith("{view}") and not view.startswith(("CT", "MR", "X-", "T2")):
        view = view[0].lower() + view[1:]
    return pattern.format(view=view, region=phantom.region, size=phantom.size,
                          finding=phantom.finding, part=part.format(side=phantom.side),
                          arrow=" (arrow)" if phantom.arrow else "")


def short_caption(phantom):
    """Region and modality alone: "Chest X-ray."."""
    return f"{SHORT[phantom.region]} {SHORT_MODALITY[phantom.modality]}."


def radiology_text(rng):
    """One radiology sentence about a phantom that nobody has drawn: text without a picture."""
    return caption(random_phantom(rng), rng)


LOOKS = {
    "CT": ("a smooth gray slice over a thin curved line", "a gray slice above a curved tray"),
    "MR": ("a soft slice with a white edge", "a glowing slice with a pale outline"),
    "X-ray": ("a cloudy shadow picture", "a misty shadow picture of white bars"),
    "ultrasound": ("a grainy fan on black", "a sandy fan in the dark"),
    "angiography": ("dark branches on a pale ground", "a black tree on a light ground"),
}
SHAPES = {
    "chest": ("two wide bags", "two wide sacks"),
    "abdomen": ("a tub full of lumps", "a tub of round lumps"),
    "brain": ("a walnut in a shell", "a tall egg like a walnut"),
    "knee": ("two thick posts", "a pair of thick posts"),
}
SPOTS = {
    "nodule": ("solid white ball", "bright full ball"),
    "cyst": ("black hole with a white ring", "dark ring"),
    "calcification": ("group of bright crumbs", "heap of white crumbs"),
}
AMOUNTS = {"small": ("little", "tiny"), "large": ("big", "huge")}
PLAIN_PATTERNS = (
    "{look}, {shape}, and a {amount} {spot} on the {side}{arrow}.",
    "{look} with {shape}; there is a {amount} {spot} on the {side}{arrow}.",
    "on the {side} a {amount} {spot}{arrow}, in {look} with {shape}.",
    "a {amount} {spot} on the {side}{arrow}, {shape}, {look}.",
)
PLAIN_NORMAL_PATTERNS = (
    "{look}, {shape}, and nothing else.",
    "{look} with {shape}; there is nothing more.",
)


def description(phantom, rng):
    """The picture in plain words, sides as the picture shows them; no medical vocabulary."""
    def pick(options):
        return options[rng.integers(len(options))]

    words = dict(look=pick(LOOKS[phantom.modality]), shape=pick(SHAPES[phantom.region]))
    if phantom.finding == "normal":
        return pick(PLAIN_NORMAL_PATTERNS).format(**words)
    return pick(PLAIN_PATTERNS).format(
        **words, amount=pick(AMOUNTS[phantom.size]), spot=pick(SPOTS[phantom.finding]),
        side=picture_side(phantom), arrow=" with a pointer" if phantom.arrow else "")

# What some "captions" go on with when a whole paragraph was taken for the legend.
REMARKS = (
    "The patient was admitted after three days of fever and a long history of tiredness.",
    "Blood tests at admission were normal apart from a slightly raised count of white cells.",
    "The family gave written consent, and the case was discussed by the whole team.",
    "Treatment was started on the same day and was continued for six weeks without problems.",
    "At the last visit, after one year, the patient was well and had returned to work.",
    "Similar cases have been reported before, but most of them in much older patients.",
    "Further details of the method are given in the second table of the supplement.",
    "The authors thank the technicians, who repeated the acquisition with other settings.",
)


def discussion(start, words, rng):
    """A caption of at least `words` words: `start`, then remarks of a case report."""
    sentences, order = [start], []
    while sum(len(sentence.split()) for sentence in sentences) < words:
        order = order or list(rng.permutation(len(REMARKS)))
        sentences.append(REMARKS[order.pop()])
    return " ".join(sentences)
