"""Counts in Chinese prompts: a numeral, a measure word, and the noun after it ("三只猫", "两个红色的苹果").

Chinese is written without spaces, and no dictionary is asked: a noun ends at punctuation, at a word that can't be in
it, or at the next count. A noun longer than most is marked as doubtful.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from numina.prompts.doubts import Doubt

_ONES = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0, "俩": 2}
_TENS = {"十": 10, "百": 100, "千": 1000, "万": 10000}
_MEASURES = (
    "只个個隻条條头頭匹辆輛架艘座棵株朵张張把位名群支枝根块塊片颗顆粒本件顶頂盏盞台部幅扇间間杯碗盘盤瓶盒箱篮籃袋串束对對双雙副套口"
    "栋幢尾峰羽面枚艇节節列匙盆壶罐桶轮輪"
)
_PAIRS = "对對双雙"
_HOLDERS = "群束串套堆排"  # a count of these is none of what they hold
_NUMERAL = rf"[0-9０-９]+|[{''.join(_ONES)}{''.join(_TENS)}几幾]+"
_COUNT = re.compile(
    rf"(?P<before>至少|最多|超过|超過|不到|大约|大約|大概|将近|將近|近|约|約|第|半)?(?P<number>{_NUMERAL})"
    rf"(?P<more>多|几|余)?(?P<measure>[{_MEASURES}])"
)
_END = re.compile(
    r"[\s\W_]|[和与與及跟同或]|在(?!的)|正(?!方)|从|從|向|往|朝|被|把|将|是|有|着|著|了|并|並|而|也|都|一起|一边|地(?!毯|球|板|图|圖)|里|裡|上|下|"
    r"旁|之间|中(?!国|國)|前|后|後|站(?!牌)|坐|躺|趴|蹲|跑(?!车|車|步|者)|走(?!廊)|飞(?!机|船|碟|鸟|行)|飛(?!機|船|碟|鳥|行)|游(?!客|艇|泳池|戏)|吃|喝|玩(?!具|偶)|看|追|踢|"
    r"跳(?!绳)|唱|舞(?!者|台|狮)|骑(?!士|手)|騎|睡|穿|戴|拿(?!铁)|握|抱|举|放|停(?!车)|漂|飘|升|落|挂|围|圍|排(?!球)|嬉|奔|盛开|绽放|缓|慢|快(?!艇|递)|静|正在|"
    r"的时候|打|拉(?!布)|推|爬(?!山)|说|笑|哭|叫|闪|融|摆|擺|环|绕|组成|[0-9０-９]|$"
)
_COLOURS = "红黄蓝绿白黑灰棕橙紫粉金银紅黃藍綠銀"
_KIND = re.compile(
    rf"^(?:(?:[{_COLOURS}深浅淡]+色|[{_COLOURS}])(?!瓜|菜|酒|板|鱼|魚|杏|薯|豆|牛|包|莓|云|雲|豹|猩|熊|鹤|鶴|鹭|人|家|字|页)"
    r"|可爱|可愛|美丽|巨大|漂亮|年轻|老年(?=人)|老(?=狗|猫)|高大|大型|小型|新鲜|成熟|木制|木質|塑料|金属|古老|彩色|大(?=狗|猫|树|船|鸟|球|苹))+"
)
_LONG = 3  # characters of a noun past which its end is marked as doubtful


_KANA = re.compile("[ぁ-ゟァ-ヺ]")


def is_chinese(prompt: str) -> bool:
    """Whether it has Chinese characters, and none that only Japanese has: its counts are other words ("3匹の猫")."""
    return any("一" <= character <= "鿿" for character in prompt) and not _KANA.search(prompt)


def read_chinese(prompt: str) -> Iterator[tuple[str, int, Doubt | None, str]]:
    """For each count: the noun as the prompt writes it, the count, what is doubtful, and the prompt's words for it."""
    for match in _COUNT.finditer(prompt):
        digits, measure = match["number"], match["measure"]
        if match["before"] == "第":
            continue  # an ordinal: "第三只"
        start = match.end()
        following = _COUNT.search(prompt, start)
        rest = prompt[start : following.start() if following else len(prompt)]
        if rest.startswith("半"):  # "两个半苹果"
            yield "", 0, Doubt.FRACTION, match.group()
            continue
        described, _, noun = _cut(rest.lstrip()).rpartition("的")
        kind = _KIND.match(noun)
        if kind and kind.end() < len(noun):
            noun = noun[kind.end() :]
        text = prompt[match.start() : start + len(rest) - len(rest.lstrip()) + len(described) + len(noun) + 1].strip()
        if not noun:
            yield "", 0, Doubt.DROPPED, match.group()
            continue
        count = value(digits)
        if match["before"] or match["more"] or count is None:
            doubt = Doubt.FRACTION if match["before"] == "半" else Doubt.BOUND
            yield noun, 0, doubt, match.group() + noun
            continue
        if measure in _HOLDERS and count == 1:
            continue
        unsure = Doubt.NOUN if len(noun) > _LONG else None
        yield noun, count * (2 if measure in _PAIRS else 1), unsure, text


def _cut(text: str) -> str:
    """The text up to the first character that ends a noun; its own first character is part of it."""
    colours = _KIND.match(text)
    begin = colours.end() if colours and colours.end() < len(text) else 0
    end = _END.search(text, min(begin + 1, len(text)))
    if _END.match(text[:1]) and not text[:1].isalpha():
        return ""
    return text[: end.start()] if end else text


def in_digits(prompt: str) -> str:
    """The prompt with the numerals of its counts as digits: "3只猫" for "三只猫"."""

    def digits(match: re.Match[str]) -> str:
        count = None if match["before"] == "第" else value(match["number"])
        start, end = (place - match.start() for place in match.span("number"))
        return match.group() if count is None else f"{match.group()[:start]}{count}{match.group()[end:]}"

    return _COUNT.sub(digits, prompt)


def value(numeral: str) -> int | None:
    """The number that a Chinese numeral or digits say; None for 几, a few."""
    if numeral.isdecimal():
        return int(numeral)
    if set(numeral) & set("几幾"):
        return None
    total = section = digit = 0
    for character in numeral:
        if character in _ONES:
            digit = digit * 10 + _ONES[character] if digit else _ONES[character]
        elif character == "万":
            total, section, digit = (total + section + digit) * 10000, 0, 0
        else:
            section, digit = section + (digit or 1) * _TENS[character], 0
    return total + section + digit
